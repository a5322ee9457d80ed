#!/usr/bin/env bash
# Do what docs/en/get_started.md tells a newcomer, as it stands there: in a copy of this repository, in an empty environment.
#
#   tools/dev/newcomer.sh          run the page's commands in order; ends with the first that fails
#   tools/dev/newcomer.sh --list   only print the script that would be run
#
# Taken from the page are the code blocks under a line `<!-- newcomer -->`: bash is run, and Python whose first line is
# `# NAME.py` becomes that file. Three minutes on two quiet cores, where pip has its packages near.
#
# Environment: FOLDER, where the copy is made (default: a new one below TMPDIR; it must be empty, and stays for you to look
# at); PAGE, another page; pip's own variables (PIP_INDEX_URL, PIP_FIND_LINKS, PIP_CONSTRAINT …) reach its pip.
set -euo pipefail
root=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")
page=$(realpath "${PAGE:-$root/docs/en/get_started.md}")

script=$(awk '
    /^<!-- newcomer -->$/       { marked = 1; next }
    marked && /^```/            { language = substr($0, 4); marked = 0; inside = 1; first = 1
                                  if (language != "bash" && language != "python") {
                                      print FILENAME ":" FNR ": a block of `" language "`; bash or python can be run" > "/dev/stderr"
                                      exit 1 }
                                  next }
    marked && NF                { print FILENAME ":" FNR ": no code block follows the mark" > "/dev/stderr"; exit 1 }
    inside && /^```$/           { inside = 0; if (language == "python") print "END_OF_FILE"; next }
    inside && language == "bash" { if ($0 !~ /^#/ && NF) print "say " FNR; print; next }
    inside                      { if (first && !match($0, /^# [a-z_]+\.py$/)) {
                                      print FILENAME ":" FNR ": a file begins with `# NAME.py`" > "/dev/stderr"; exit 1 }
                                  if (first) print "cat > " substr($0, 3) " << '"'END_OF_FILE'"'"
                                  first = 0; print }
' "$page")
[[ -n $script ]] || { echo "$page has no block under <!-- newcomer -->" >&2; exit 1; }
if [[ ${1:-} == --list ]]; then
    grep -v '^say ' <<< "$script"
    exit
fi

folder=${FOLDER:-$(mktemp -d)}
mkdir -p "$folder"
[[ -z $(ls -A "$folder") ]] || { echo "FOLDER $folder is not empty" >&2; exit 1; }
# What git tracks or would track, uncommitted changes too: what a newcomer's checkout holds
git -C "$root" ls-files -z --cached --others --exclude-standard | (cd "$root" && xargs -0 ls -d 2> /dev/null | tar -c -T -) |
    tar -x -C "$folder"
{
    echo 'say() { printf "\n[%4d s] %s:%d: %s\n" "$SECONDS" "$PAGE_NAME" "$1" "$(sed -n "$1p" "$PAGE")"; }'
    echo "$script"
} > "$folder/.newcomer"
cd "$folder"
echo "in $folder"
# Nothing of the environment that this is started from
env -u PYTHONPATH -u VIRTUAL_ENV -u PYTHONHOME PAGE="$page" PAGE_NAME="$(basename "$page")" HF_HUB_OFFLINE=1 \
    bash -euo pipefail .newcomer
printf '\n%s holds: done in %d s, in %s\n' "$(basename "$page")" "$SECONDS" "$folder"
