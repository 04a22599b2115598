"""The tables of docs/results.md: the recipes on public data, each run by its command."""
