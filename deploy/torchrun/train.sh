#!/usr/bin/env bash
# Train in several processes, on one machine or on several: the same command on each of them.
#
#   deploy/torchrun/train.sh --preset coco_panoptic_resnet50 --data coco --output runs/coco
#   NODES=2 HEAD=first-machine:29400 deploy/torchrun/train.sh --preset ... --data ... --output /shared/runs/coco
#
# PROCESSES  on each machine; by default one for each of its GPUs ("cpu": one for each core)
# NODES      machines
# HEAD       name and port of one of them, which all can reach
# ADDRESS    of this machine for the others, where its own name does not lead there (several network cards)
# RESTARTS   how often all processes are started again after one has ended with an error or was killed
#
# --resume goes on from the newest checkpoint, and starts where there is none. All machines must see the
# folder of the run.
set -euo pipefail

# torchrun keeps one store for all starts; in it gloo finds the addresses of processes that are gone
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

where=()
if [ -n "${ADDRESS:-}" ]; then
  case "${HEAD:-}" in "$ADDRESS":*) is_head=true ;; *) is_head=false ;; esac
  where=(--local-addr "$ADDRESS" --rdzv-conf "is_host=$is_head")
fi

exec torchrun \
  --nnodes "${NODES:-1}" \
  --nproc-per-node "${PROCESSES:-gpu}" \
  --rdzv-backend c10d \
  --rdzv-id "${JOB:-unimask}" \
  --rdzv-endpoint "${HEAD:-localhost:0}" \
  "${where[@]}" \
  --max-restarts "${RESTARTS:-3}" \
  --no-python unimask train "$@" --resume
