# A host of a site: sh host.sh NAME CGROUP PLACE, PLACE being the mount namespace of the caller (readlink /proc/self/ns/mnt).
#
# The shell moves into a cgroup of its own in every hierarchy, and then into namespaces of its own, in which those cgroups
# are the roots. So two hosts may have containers and cgroups of the same names, and neither sees the machine's network.
# What is mounted is mounted in the host's mount namespace only: nothing is done unless it is another one.
set -eu
if [ "$1" != inside ]; then
    for hierarchy in /sys/fs/cgroup/*/; do
        own=$hierarchy$2
        mkdir "$own"
        if [ -e "$own/cpuset.cpus" ] && [ -e "$own/cgroup.clone_children" ]; then
            cat "${hierarchy}cpuset.cpus" >"$own/cpuset.cpus"
            cat "${hierarchy}cpuset.mems" >"$own/cpuset.mems"
            echo 1 >"$own/cgroup.clone_children"
        fi
        echo $$ >"$own/cgroup.procs"
    done
    exec unshare --mount --net --uts --ipc --cgroup --propagation private sh "$0" inside "$1" "$3"
fi
[ "$(readlink /proc/self/ns/mnt)" != "$3" ]
table=$(sed -n 's/.* \(\/sys\/fs\/cgroup\/[^ ]*\) .* - \(cgroup2*\) [^ ]* \([^ ]*\)$/\1 \2 \3/p' /proc/self/mountinfo)
mount -t tmpfs cgroup /sys/fs/cgroup
echo "$table" | while read -r point kind options; do
    mkdir "$point"
    case $kind in
    cgroup2) mount -t cgroup2 cgroup2 "$point" ;;
    *)
        # Only what says which hierarchy it is.
        which=$(echo "$options" | tr , '\n' | grep -vE '^(rw|xattr|clone_children|release_agent=.*)$' | paste -sd,)
        case $which in name=*) which=none,$which ;; esac
        mount -t cgroup -o "$which" cgroup "$point"
        ;;
    esac
done
hostname "$2"
ip link set lo up
echo ready
exec sleep 100000
