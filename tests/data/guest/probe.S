# What a guest must do for its hypervisor to count as able to run guests: 512 bytes
# that set the serial port up, print one line, and switch themselves off.
#
#     as --32 probe.S -o probe.o
#     ld -m elf_i386 -Ttext 0x7c00 --oformat binary -o probe.img probe.o
#
# drivers/libvirt_probe.py holds the result; its test builds this again and compares.
.code16
.globl _start
_start:
    cli
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %ss
    mov $0x7c00, %sp
    cld
    mov $0x3fb, %dx             # line control: 8 bits, no parity, one stop bit
    mov $0x03, %al
    out %al, %dx
    mov $line, %si
print:
    lodsb
    test %al, %al
    jz off
    mov %al, %ah
    mov $0x3fd, %dx             # line status: wait until it takes a byte
wait:
    in %dx, %al
    test $0x20, %al
    jz wait
    mov %ah, %al
    mov $0x3f8, %dx
    out %al, %dx
    jmp print
off:
    mov $0x604, %dx             # ACPI's PM1a control of q35 and pc: soft off
    mov $0x2000, %ax
    out %ax, %dx
halt:
    hlt
    jmp halt
line:
    .asciz "TRUSTFABRIC-PROBE\r\n"
    .org 510
    .word 0xaa55
