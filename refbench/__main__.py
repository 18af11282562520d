"""`python -m refbench`."""

from refbench.cli.main import main

if __name__ == "__main__":
    main()
