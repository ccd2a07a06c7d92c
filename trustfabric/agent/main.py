"""`trustfabric-agent`: answers challenges from this guest's TPM."""

import argparse
import base64
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from trustfabric.agent.evidence import tpm_evidence
from trustfabric.agent.tpm import AK_ECC, AK_RSA, Tpm, TpmError
from trustfabric.agent.transport import TpmUnreachableError, open_tpm
from trustfabric.domain.evidence.model import Reject
from trustfabric.domain.evidence.tpm2 import BANKS
from trustfabric.domain.evidence.tpm2_public import parse_public

_TEMPLATES = {"ecc": AK_ECC, "rsa": AK_RSA}
_LAST_PCR = 23
_MAX_EXTRA_DATA = 64

OK, FAILED, UNREACHABLE = 0, 1, 3


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        with open_tpm(options.tpm, options.timeout) as transport:
            tpm = Tpm(transport)
            tpm.startup()
            sys.stdout.write(options.run(tpm, options) + "\n")
    except TpmUnreachableError as error:
        sys.stderr.write(f"no TPM at {options.tpm}: {error}\n")
        return UNREACHABLE
    except (TpmError, Reject) as error:
        sys.stderr.write(f"{error}\n")
        return FAILED
    return OK


def _quote(tpm: Tpm, options: argparse.Namespace) -> str:
    return tpm_evidence(
        tpm,
        options.extra_data,
        options.pcrs,
        bank=options.bank,
        template=_TEMPLATES[options.algorithm],
    ).decode()


def _extend(tpm: Tpm, options: argparse.Namespace) -> str:
    tpm.pcr_extend(options.pcr, options.bank, options.digest)
    return tpm.pcr_read(options.bank, [options.pcr])[options.pcr].hex()


def _enroll(tpm: Tpm, options: argparse.Namespace) -> str:
    with tpm.attestation_key(_TEMPLATES[options.algorithm]) as key:
        public = parse_public(key.public)
    return json.dumps(
        {
            "name": public.name.hex(),
            "tpmt_public": base64.b64encode(key.public).decode(),
        }
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trustfabric-agent", description=__doc__)
    parser.add_argument(
        "--tpm",
        type=Path,
        default=Path("/dev/tpmrm0"),
        help="device, or the socket of a software TPM (default: %(default)s)",
    )
    parser.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    quote = commands.add_parser("quote", help="answer a challenge; prints evidence")
    quote.add_argument("extra_data", type=_hex, help="what the challenge asks for, hex")
    quote.add_argument("--pcrs", type=_pcrs, default=list(range(9)), help="as 0-8,14")
    quote.set_defaults(run=_quote)

    extend = commands.add_parser("extend", help="measure something into a register")
    extend.add_argument("pcr", type=_pcr)
    extend.add_argument("digest", type=_hex)
    extend.set_defaults(run=_extend)

    enroll = commands.add_parser(
        "enroll", help="print the attestation key's public half"
    )
    enroll.set_defaults(run=_enroll)

    for command in (quote, extend):
        command.add_argument("--bank", choices=sorted(BANKS), default="sha256")
    for command in (quote, enroll):
        command.add_argument("--algorithm", choices=sorted(_TEMPLATES), default="ecc")
    return parser


def _hex(word: str) -> bytes:
    data = bytes.fromhex(word)
    if len(data) > _MAX_EXTRA_DATA:
        raise argparse.ArgumentTypeError(f"at most {_MAX_EXTRA_DATA} bytes")
    return data


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
