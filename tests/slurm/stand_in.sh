#!/usr/bin/env bash
# In the place of `itm`: keeps its promises about exit codes and signals, without its weight.
#   stand_in.sh train BEHAVIOUR run.dir=DIR
behaviour=$2 run=${3#run.dir=} restart=${SLURM_RESTART_COUNT:-0}
echo "rank $SLURM_PROCID of $SLURM_NTASKS on $SLURMD_NODENAME, restart $restart" >> "$run/starts"
ends() { [ -e "$run/outcome" ] || echo "$*" > "$run/outcome"; }
save() { echo "saved" >> "$run/saves"; ends saved 85; exit 85; }
for_ever() { trap save USR1 TERM; while :; do sleep 0.1; done; }
case $behaviour in
  once) [ "$restart" -ge 1 ] || for_ever ;;
  # asked before it can listen, it is ended by the signal, or does not hear it
  young) [ "$restart" -ge 1 ] || exec sleep 600 ;;
  deaf) [ "$restart" -ge 1 ] || { trap "" USR1; until [ -e "$run/listen" ]; do sleep 0.1; done; for_ever; } ;;
  misses) [ "$restart" -ge 1 ] || { until [ -e "$run/gone" ]; do sleep 0.1; done; ends lost 1 another process is gone; exit 1; } ;;
  fails) [ "$SLURM_PROCID" != 1 ] || { ends failed 3 rank 1 is unwell; exit 3; }; for_ever ;;
  environment) echo "$OMP_NUM_THREADS ${FOO:-none} ${CUDA_VISIBLE_DEVICES:-none}" >> "$run/environment" ;;
esac
ends finished 0
