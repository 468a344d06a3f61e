"""The command line: every verb of the library that a shell needs."""


def main() -> None:
    """The console entry point `lakestore`."""
    from lakestore.cli.app import app

    app(prog_name="lakestore")
