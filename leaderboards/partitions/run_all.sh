#!/bin/sh
# Runs the federation of run.yaml over every split, two at a time, adds the runs and renders the pages.
# About ten minutes on two cores. FEDBENCH_DATA=<directory> sh leaderboards/partitions/run_all.sh
set -e
board=leaderboards/partitions

run() {
    OMP_NUM_THREADS=1 fedbench train-and-eval $board/run.yaml --set "name=partitions-$1" --set "data.partition=$2" >/dev/null
}

run iid '{by: iid}' &
run dirichlet-1 '{by: dirichlet, alpha: 1.0}' &
wait
run dirichlet-0.1 '{by: dirichlet, alpha: 0.1, min_rows: 10}' &
run one-label '{by: shards, per_client: 1}' &
wait

for split in iid dirichlet-1 dirichlet-0.1 one-label; do
    fedbench leaderboard $board --add runs/partitions-$split --json >/dev/null
done
fedbench leaderboard $board --write
