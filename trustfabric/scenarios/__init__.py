"""How the product is broken on purpose, from outside, and shown to recover.

Documents in `scenarios/` say what is done to whom; here is what does it: over HTTP
and event streams as any client, with processes of its own.

    strict    YAML and JSON without surprises
    model     what a document says
    manifest  the documents of a folder, loaded or refused
    runtime   the runtime under test, as a process
    client    its HTTP side
    stream    its event streams, recorded
    tenants   the persons of a tenant, and what they see
    steps     the story: launch, tamper, approve, restored
    faults    what is killed, and that it came back
    invariants what must hold after every scenario
    kinds     what each kind of scenario does
    harness   the matrix: every scenario for every tenant
    report    the manifest and the transcript of a run
    demo      the story again and again, for people to watch
"""
