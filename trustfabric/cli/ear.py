"""`mcpctl attest ear`: a signed result of one attestation, for parties outside."""

import click

from trustfabric.cli import render
from trustfabric.cli.options import POSITIVE, as_json
from trustfabric.cli.session import Session


@click.command()
@click.argument("attestation", type=POSITIVE, metavar="ATTESTATION")
@click.option("--nonce", metavar="TEXT", help="What the party outside asked with.")
@as_json
@click.pass_obj
async def ear(
    session: Session, /, attestation: int, nonce: str | None, *, as_json: bool
) -> None:
    """Print an EAR token of a verdict; /.well-known/jwks.json has its keys."""
    answer = await session.client.get(
        f"/api/attestation/{attestation}/ear",
        {} if nonce is None else {"nonce": nonce},
    )
    if as_json:
        render.whole(answer)
    else:
        click.echo(answer["ear"])
