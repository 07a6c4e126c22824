"""`python -m kikitori` is the command `kikitori`."""

from kikitori.cli.main import main

main()
