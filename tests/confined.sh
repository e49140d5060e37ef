#!/bin/sh
# Runs a command as Docker does with read_only, cap_drop and no-new-privileges: confined.sh USER FOLDER… -- COMMAND…
# Everything but the folders is read-only. Needs root, in a mount namespace of its own (unshare --mount). The one
# capability that is left permits to read any file, because the interpreter of a test may be in the folder of another user.
set -eu
user=$1
shift
mount --make-rprivate /
volumes=" "
while [ "$1" != -- ]; do
    chown "$user:$user" "$1"
    mount --bind "$1" "$1"
    volumes="$volumes$1 "
    shift
done
shift
mount -t tmpfs tmpfs /dev/shm
while read -r _ target type _; do
    case "$type" in proc | sysfs | cgroup* | devpts | devtmpfs | mqueue) continue ;; esac
    case "$volumes /dev/shm " in *" $target "*) continue ;; esac
    mount -o remount,bind,ro "$target" 2>/dev/null || true
done </proc/self/mounts
exec setpriv --reuid "$user" --regid "$user" --clear-groups --no-new-privs \
    --inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search --bounding-set=-all,+dac_read_search "$@"
