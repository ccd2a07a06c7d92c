"""`trustfabric-agent`: answers challenges from what vouches for this guest."""

import argparse
import base64
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from trustfabric.agent import push, serve, sev_guest, tsm
from trustfabric.agent.answers import Sources, answer
from trustfabric.agent.tpm import AK_ECC, AK_RSA, Tpm, TpmError
from trustfabric.agent.transport import (
    TpmUnreachableError,
    UnansweredError,
    UnreachableError,
    open_tpm,
)
from trustfabric.domain.evidence.model import EvidenceKind, Reject
from trustfabric.domain.evidence.tpm2 import BANKS
from trustfabric.domain.evidence.tpm2_public import parse_public

_TEMPLATES = {"ecc": AK_ECC, "rsa": AK_RSA}
_LAST_PCR = 23
_MAX_EXTRA_DATA = 64

OK, FAILED, UNREACHABLE = 0, 1, 3


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.run is _push:
        options.runtime = _runtime(parser, options)
    try:
        sys.stdout.write(options.run(options))
    except TpmUnreachableError as error:
        sys.stderr.write(f"no TPM at {options.tpm}: {error}\n")
        return UNREACHABLE
    except UnansweredError as error:
        sys.stderr.write(f"{error}\n")
        return _why(error)
    except UnreachableError as error:
        sys.stderr.write(f"{error}\n")
        return UNREACHABLE
    except (TpmError, Reject, push.RefusedError) as error:
        sys.stderr.write(f"{error}\n")
        return FAILED
    except KeyboardInterrupt:
        return OK
    return OK


def _why(error: UnansweredError) -> int:
    return UNREACHABLE if isinstance(error.__cause__, UnreachableError) else FAILED


def _quote(options: argparse.Namespace) -> str:
    made = answer(options.kind, options.extra_data, _sources(options))
    return made.decode() + "\n"


def _serve(options: argparse.Namespace) -> str:
    sources = _sources(options)
    if options.virtio is not None:
        serve.serve_port(options.virtio, sources)
    if options.socket is not None:
        serve.serve_socket(serve.listen_unix(options.socket), sources)
    serve.serve_socket(serve.listen_vsock(options.vsock), sources)
    return ""


def _push(options: argparse.Namespace) -> str:
    if not options.once:
        push.push_for_ever(options.runtime, _sources(options))
    if not push.push_once(options.runtime, _sources(options)):
        raise UnreachableError("no challenge came")
    return ""


def _extend(options: argparse.Namespace) -> str:
    with open_tpm(options.tpm, options.timeout) as transport:
        tpm = Tpm(transport)
        tpm.startup()
        tpm.pcr_extend(options.pcr, options.bank, options.digest)
        return tpm.pcr_read(options.bank, [options.pcr])[options.pcr].hex() + "\n"


def _enroll(options: argparse.Namespace) -> str:
    with open_tpm(options.tpm, options.timeout) as transport:
        tpm = Tpm(transport)
        tpm.startup()
        with tpm.attestation_key(_TEMPLATES[options.algorithm]) as key:
            public = parse_public(key.public)
    document = {
        "name": public.name.hex(),
        "tpmt_public": base64.b64encode(key.public).decode(),
    }
    return json.dumps(document) + "\n"


def _runtime(
    parser: argparse.ArgumentParser, options: argparse.Namespace
) -> push.Runtime:
    runtime = push.Runtime(
        url=options.url,
        token_file=options.token_file,
        ca_file=options.ca_file,
        plain=options.plain,
    )
    try:
        runtime.check()
    except ValueError as error:
        parser.error(f"url: {error}")
    return runtime


def _sources(options: argparse.Namespace) -> Sources:
    return Sources(
        tpm=options.tpm,
        tsm=options.tsm,
        sev_guest=options.sev_guest,
        certificate=options.certificate,
        timeout_s=options.timeout,
        pcrs=options.pcrs,
        bank=options.bank,
        template=_TEMPLATES[options.algorithm],
        accelerators=options.accelerators,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trustfabric-agent", description=__doc__)
    _add_sources(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    quote = commands.add_parser("quote", help="answer a challenge; prints evidence")
    quote.add_argument("extra_data", type=_hex, help="what the challenge asks for, hex")
    quote.add_argument(
        "--kind",
        type=EvidenceKind,
        choices=(
            EvidenceKind.TPM,
            EvidenceKind.AMD_SEV_SNP,
            EvidenceKind.INTEL_TDX,
        ),
        help="absent: the processor's for 64 bytes, else the TPM's",
    )
    quote.set_defaults(run=_quote)

    served = commands.add_parser("serve", help="answer whoever asks from outside")
    where = served.add_mutually_exclusive_group()
    where.add_argument("--vsock", type=_port, default=serve.PORT, metavar="PORT")
    where.add_argument(
        "--virtio",
        type=Path,
        nargs="?",
        const=serve.VIRTIO_PORT,
        metavar="DEVICE",
        help=f"a virtio-serial port (default: {serve.VIRTIO_PORT})",
    )
    where.add_argument("--socket", type=Path, metavar="PATH", help="a unix socket")
    served.set_defaults(run=_serve)

    pushed = commands.add_parser("push", help="fetch challenges and push answers")
    pushed.add_argument("url", help="of the runtime, as https://runtime.example")
    pushed.add_argument(
        "--token-file",
        type=Path,
        required=True,
        help="the token that was issued for this instance",
    )
    pushed.add_argument("--ca-file", type=Path, help="instead of the system's")
    pushed.add_argument(
        "--plain", action="store_true", help="send the token unencrypted"
    )
    pushed.add_argument("--once", action="store_true", help="answer one and end")
    pushed.set_defaults(run=_push)

    extend = commands.add_parser("extend", help="measure something into a register")
    extend.add_argument("pcr", type=_pcr)
    extend.add_argument("digest", type=_hex)
    extend.set_defaults(run=_extend)

    enroll = commands.add_parser(
        "enroll", help="print the attestation key's public half"
    )
    enroll.set_defaults(run=_enroll)

    for command in (quote, served, pushed):
        command.add_argument(
            "--pcrs", type=_pcrs, default=list(range(9)), help="as 0-8,14"
        )
    for command in (quote, served, pushed, extend):
        command.add_argument("--bank", choices=sorted(BANKS), default="sha256")
    for command in (quote, served, pushed, enroll):
        command.add_argument("--algorithm", choices=sorted(_TEMPLATES), default="ecc")
    return parser


def _add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tpm",
        type=Path,
        default=Path("/dev/tpmrm0"),
        help="device, or the socket of a software TPM (default: %(default)s)",
    )
    parser.add_argument(
        "--tsm",
        type=Path,
        default=tsm.REPORTS,
        help="folder of configfs-tsm, or an entry in it (default: %(default)s)",
    )
    parser.add_argument(
        "--sev-guest",
        type=Path,
        default=sev_guest.DEVICE,
        help="device of older kernels (default: %(default)s)",
    )
    parser.add_argument(
        "--certificate",
        type=Path,
        help="the processor's VCEK or VLEK, where the host hands none over",
    )
    parser.add_argument(
        "--accelerators",
        type=Path,
        metavar="PROGRAM",
        help="prints the evidence of an accelerator: PROGRAM ACCELERATOR NONCE",
    )
    parser.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS")


def _hex(word: str) -> bytes:
    data = bytes.fromhex(word)
    if len(data) > _MAX_EXTRA_DATA:
        raise argparse.ArgumentTypeError(f"at most {_MAX_EXTRA_DATA} bytes")
    return data


def _port(word: str) -> int:
    number = int(word)
    if not 0 < number < 2**32 - 1:
        raise argparse.ArgumentTypeError("ports are 1 to 4294967294")
    return number


def _pcr(word: str) -> int:
    index = int(word)
    if not 0 <= index <= _LAST_PCR:
        raise argparse.ArgumentTypeError(f"registers are 0 to {_LAST_PCR}")
    return index


def _pcrs(words: str) -> list[int]:
    indexes: set[int] = set()
    for word in words.split(","):
        first, _, last = word.partition("-")
        indexes.update(range(_pcr(first), _pcr(last or first) + 1))
    return sorted(indexes)


if __name__ == "__main__":
    sys.exit(main())
