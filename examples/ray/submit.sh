#!/bin/bash
# A comparison on a Ray cluster that is there already, started from any machine that reaches its head:
#
#     examples/ray/submit.sh http://HEAD:8265 my-recipe.toml --seeds 1,2,3,4,5 --runs /shared/runs --name mine
#
# The command runs on the cluster, so this machine may be switched off; the same command again goes on. Without Ray's job
# server, `superpose compare ... --engine ray://HEAD:10001` does the same while this machine stays. All nodes need superpose
# in one version, and have to see the runs and the text under the same path.

set -eu
dashboard=$1
recipe=$2
shift 2
exec ray job submit --address "$dashboard" --working-dir "$(dirname "$recipe")" --no-wait -- \
    superpose compare "$(basename "$recipe")" --engine ray "$@"
