"""One module for each ./tessera command, each with main(arguments) -> exit code."""
