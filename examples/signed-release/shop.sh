#!/bin/sh
# Says what a thing costs, once it is known that nobody changed anything.
set -eu
ssh-keygen -Y verify -f signers -I release -n release -s SHA256SUMS.sig < SHA256SUMS >/dev/null
sha256sum --quiet --check SHA256SUMS
while IFS=, read -r thing cents; do
    echo "$thing: $cents cents"
done < prices.csv
