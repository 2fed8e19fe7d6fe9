"""Sign a folder, code included, with a private key; `verify` checks it with the public one.

    openssl ecparam -name prime256v1 -genkey -noout -out private.pem
    openssl ec -in private.pem -pubout -out public.pem
    multitask-sentence sign runs/quickstart --private_key private.pem

The signature, model.sig, is one of OpenSSF model signing (pip install -e ".[signing]"). It covers all
files that a push takes, but for the card and the manifest, which a push may write anew, and is pushed along. To sign
without a key, with an account and a network: model_signing sign sigstore.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.text.spelling import visible
from ._signed import SIGNATURE_FILE, about_compiled, hashing_config

PASSWORD_VARIABLE = "MULTITASK_SENTENCE_KEY_PASSWORD"


def main(argv: Sequence[str] | None = None) -> None:
    """The command: a person's mistake ends with one message and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="multitask-sentence sign", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="The folder of a model.")
    parser.add_argument("--private_key", type=Path, required=True, help="Of an elliptic curve, a PEM file.")
    parser.add_argument(
        "--password",
        default=os.environ.get(PASSWORD_VARIABLE) or None,
        help=f"Of the key, where it has one; better given as the environment variable {PASSWORD_VARIABLE}.",
    )
    options = parser.parse_args(argv)
    try:
        hashing = hashing_config(options.folder)
        if compiled := about_compiled(options.folder):
            raise ValueError(compiled)
        from model_signing import signing

        # model-signing declares a str, and hands it on to what takes bytes.
        password: Any = options.password and options.password.encode()
        config = signing.Config().use_elliptic_key_signer(private_key=options.private_key, password=password)
        config.set_hashing_config(hashing).sign(options.folder, options.folder / SIGNATURE_FILE)
    except (ImportError, OSError, TypeError, ValueError) as error:
        sys.exit(visible(f"error: {options.folder} was not signed: {error}"))
    print(f"Signed: {options.folder / SIGNATURE_FILE}")  # noqa: T201 - what this command is for


if __name__ == "__main__":
    main()
