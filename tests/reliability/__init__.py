"""The promises of this repository, tried many times: few in `make test`, all in `make reliability`, which writes the
counts to docs/reliability.json and draws docs/reliability.md from them."""
