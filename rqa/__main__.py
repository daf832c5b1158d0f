"""`python -m rqa` is the command `rqa`."""

from rqa.cli.command import main

if __name__ == "__main__":
    main()
