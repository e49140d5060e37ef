#!/bin/sh
# Installs the packages of a lock file with pip, and prints one line for each as it is fetched.
# Usage: install_packages.sh PYTHON LOCK_FILE
set -eu
python=$1 lock=$2
total=$(grep -c '^[A-Za-z0-9].*==' "$lock")
failed=$(mktemp)
trap 'rm -f "$failed"' EXIT

# sh has no pipefail: the file keeps pip's exit code. pip compiles nothing: Python does so for what is imported.
{
    "$python" -m pip install --disable-pip-version-check --no-input --no-compile --progress-bar off \
        --require-hashes --requirement "$lock" 2>&1 || echo $? >"$failed"
} | awk -v total="$total" '
    /^(Collecting|Requirement already satisfied:)/ {
        name = $1 == "Collecting" ? $2 : $4
        if ($1 == "Collecting") printf "  [%d/%d] %s\n", ++count, total, name; else ++count
    }
    /^Installing collected packages/ { print "  unpacking" }
    /^(ERROR|WARNING)/ { print }
    { fflush() }
'
[ ! -s "$failed" ] || exit "$(cat "$failed")"
