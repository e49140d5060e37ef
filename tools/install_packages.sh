#!/bin/sh
# Installs the packages of a lock file with pip, and prints one line for each as it is fetched.
# Usage: install_packages.sh PYTHON LOCK_FILE [PIP_OPTION…]
set -eu
python=$1 lock=$2
shift 2
total=$(grep -c '^[A-Za-z0-9].*==' "$lock")
failed=$(mktemp)
trap 'rm -f "$failed"' EXIT

# sh has no pipefail: the file keeps pip's exit code. The lock is complete, so pip looks for no dependencies.
{
    "$python" -m pip install --disable-pip-version-check --no-input --no-deps --progress-bar off \
        --require-hashes --requirement "$lock" "$@" 2>&1 || echo $? >"$failed"
} | awk -v total="$total" '
    /^Ignoring/ { --total }  # a package of another platform: pip says so before the first of the others
    /^(Collecting|Processing|Requirement already satisfied:)/ {
        ++count
        if ($1 == "Requirement") next
        name = $2; sub(/.*\//, "", name)
        printf "  [%d/%d] %s\n", count, total, name
    }
    /^Installing collected packages/ { print "  unpacking" }
    /^ERROR/ { print }
    { fflush() }
'
[ ! -s "$failed" ] || exit "$(cat "$failed")"
