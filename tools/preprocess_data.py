"""Texts to Megatron's indexed data sets: `python tools/preprocess_data.py --help`."""

import sys

if __name__ == "__main__":
    from megarl.cli.output import complain
    from megarl.data.preprocess_command import main
    from megarl.errors import MegaRLError

    try:
        sys.exit(main())
    except MegaRLError as error:
        complain(str(error))
        sys.exit(error.exit_code)
