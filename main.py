"""``python main.py …`` is the command line, from a checkout."""

from cli.app import main

if __name__ == "__main__":
    main()
