"""The package's command, as a script for `warm.start`: tests/helpers/command.py NAME ARGUMENTS."""

import sys

from multitask_sentence.__main__ import main

if __name__ == "__main__":
    main(sys.argv[1:])
