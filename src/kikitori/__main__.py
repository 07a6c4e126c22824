"""`python -m kikitori` is the command `kikitori`."""

from kikitori.cli import main

main()
