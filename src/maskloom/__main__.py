"""``python -m maskloom``: the same as the ``maskloom`` command."""

from maskloom.cli import main

if __name__ == "__main__":
    main()
