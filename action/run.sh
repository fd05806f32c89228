#!/bin/sh
# The one step of action.yml. Values come in the environment, so that no text of a pull request becomes a command.
#
#  inputs ─► the job description as a file ─► an id_token of this job, or the token ─► wharf run ─► its verdict, its exit status
set -eu

fail() {
    printf '::error::%s\n' "$1"
    exit 6
}

described() {
    count=0
    for value in "$WHARF_ACTION_JOB" "$WHARF_ACTION_FILE" "$WHARF_ACTION_URL"; do
        if [ -n "$value" ]; then count=$((count + 1)); fi
    done
    [ "$count" = 1 ] || fail "write one of with: job, with: file and with: url"
    if [ -n "$WHARF_ACTION_FILE" ]; then
        [ -f "$WHARF_ACTION_FILE" ] || fail "there is no file $WHARF_ACTION_FILE; was the repository checked out?"
        job=$WHARF_ACTION_FILE
        return
    fi
    job=$RUNNER_TEMP/wharf-job.yml
    if [ -n "$WHARF_ACTION_JOB" ]; then
        printf '%s\n' "$WHARF_ACTION_JOB" >"$job"
    else
        curl --silent --show-error --fail --location --output "$job" -- "$WHARF_ACTION_URL" \
            || fail "cannot fetch $WHARF_ACTION_URL"
    fi
}

# GitHub gives it to jobs with `permissions: {id-token: write}`. What proves that we are this job goes to curl by its standard input:
# every user of the runner can read arguments.
id_token() {
    audience=${WHARF_ACTION_AUDIENCE:-$WHARF_SERVER}
    printf 'header = "Authorization: bearer %s"\n' "$ACTIONS_ID_TOKEN_REQUEST_TOKEN" \
        | curl --silent --show-error --fail --retry 3 --config - --get --data-urlencode "audience=$audience" \
            -- "$ACTIONS_ID_TOKEN_REQUEST_URL" \
        | sed -n 's/.*"value" *: *"\([^"]*\)".*/\1/p'
}

command -v wharf >/dev/null || fail "there is no wharf on this runner: put the program into a folder of its PATH"
[ -n "$WHARF_SERVER" ] || fail "write the farm's address in with: server"
described
if [ -n "$WHARF_ACTION_TOKEN" ]; then
    WHARF_TOKEN=$WHARF_ACTION_TOKEN
elif [ -n "${ACTIONS_ID_TOKEN_REQUEST_URL:-}" ]; then
    WHARF_TOKEN=$(id_token)
    [ -n "$WHARF_TOKEN" ] || fail "GitHub gave no id_token"
else
    fail "this job has no id_token: give it permissions: {id-token: write}, or write with: token. Jobs of forks get none"
fi
printf '::add-mask::%s\n' "$WHARF_TOKEN"
export WHARF_TOKEN
if [ -n "$WHARF_ACTION_CA" ]; then export WHARF_CA="$WHARF_ACTION_CA"; fi

# Names of jobs and branches may be in the job's templates, and nothing else of the environment.
set -- run -E 'GITHUB_(SHA|REF|REF_NAME|HEAD_REF|BASE_REF|REPOSITORY|REPOSITORY_ID|RUN_ID|RUN_NUMBER|RUN_ATTEMPT|JOB|ACTOR|EVENT_NAME)'
for tag in $WHARF_ACTION_TAGS; do set -- "$@" --tag "$tag"; done
if [ -n "$WHARF_ACTION_SHARE" ]; then set -- "$@" --share "$WHARF_ACTION_SHARE"; fi
# In the background, as a shell that waits for a program hears of no signal until it is done; and a cancelled job shall free its machine.
wharf "$@" -- "$job" &
running=$!
trap 'kill -INT "$running"' INT TERM
status=0
wait "$running" || status=$?
# A signal ends the first wait, not the program.
while kill -0 "$running" 2>/dev/null; do
    status=0
    wait "$running" || status=$?
done
case $status in
    0) verdict=PASS ;;
    1) verdict=WARN ;;
    2) verdict=COMPLETE ;;
    3) verdict=FAIL ;;
    4) verdict=INCOMPLETE ;;
    5) verdict=UNKNOWN ;;
    6) verdict=SETUP_FAIL ;;
    *) verdict= ;; # there was no job: the farm was not reached, or did not take it
esac
printf 'verdict=%s\n' "$verdict" >>"$GITHUB_OUTPUT"
exit "$status"
