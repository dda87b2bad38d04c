#!/bin/sh
# Counts words, however it sets them, and refuses what is no number.
set -eu
test "$(printf 'to be or not to be to' | "$1" 1 | tr -s ' ')" = "3 to"
! "$1" many </dev/null 2>/dev/null
