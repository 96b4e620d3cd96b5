# lecafe's trap: records the commands of a user-data script that fail without
# anybody looking. bash reads this file before a script because BASH_ENV names
# it, which drop-ins set for the units that run user data. It changes nothing
# about what the script does; where that cannot be sure, it stays away.
__lecafe_last=$_

# Whoever is started by the script is none of our business.
unset BASH_ENV

case ${__lecafe_file-}$0 in
/var/lib/cloud/instance/scripts/* | /var/lib/cloud/instances/*/scripts/* | /var/lib/cloud/scripts/per-*/*)
	__lecafe_file=/run/lecafe/trap/${0##*/}.$$
	__lecafe_keep=
	__lecafe_wrap=
	__lecafe_arm=1

	# What the script itself does about traps decides. -v would show the
	# trap's text and extdebug its functions. Where DEBUG and RETURN traps
	# would run for the trap's commands, or a trace have them in a descriptor
	# of its own, the trap keeps to a subshell, which has neither.
	__lecafe_apart=
	__lecafe_quiet=
	__lecafe_errs=
	__lecafe_functrace=
	case $- in *v*) __lecafe_arm= ;; esac
	case $- in *T*) __lecafe_functrace=1 ;; esac
	if [ -n "$__lecafe_arm" ] && mapfile -t __lecafe_text < "$0" 2> /dev/null; then
		for __lecafe_line in "${__lecafe_text[@]}"; do
			# A script that loads this file by itself does so on its second line.
			__lecafe_line=${__lecafe_line#*'|| : "$_"; '}
			case ${__lecafe_line//[\"\']/} in
			*trap*[Dd][Ee][Bb][Uu][Gg]* | *trap*[Rr][Ee][Tt][Uu][Rr][Nn]*) __lecafe_apart=1 ;;
			*extdebug* | *verbose*) __lecafe_arm= ;;
			*functrace*) __lecafe_functrace=1 ;;
			*'unset BASH_XTRACEFD'*) ;;
			*BASH_XTRACEFD*BASH_XTRACEFD*) __lecafe_arm= ;;
			*BASH_XTRACEFD=[3-9] | *BASH_XTRACEFD=[3-9][!0-9]* | *BASH_XTRACEFD=[1-9][0-9] | *BASH_XTRACEFD=[1-9][0-9][!0-9]*)
				__lecafe_apart=1
				__lecafe_word=${__lecafe_line#*BASH_XTRACEFD=}
				__lecafe_word=${__lecafe_word#[\"\']}
				__lecafe_quiet+=" ${__lecafe_word%%[!0-9]*}> /dev/null"
				;;
			*BASH_XTRACEFD*) __lecafe_arm= ;;
			esac
			case $__lecafe_line in
			*'set -'[a-zA-Z]*)
				__lecafe_word=${__lecafe_line#*set -}
				case ${__lecafe_word%%[!a-zA-Z]*} in
				*v*) __lecafe_arm= ;;
				esac
				case ${__lecafe_word%%[!a-zA-Z]*} in
				*T*) __lecafe_functrace=1 ;;
				esac
				case ${__lecafe_word%%[!a-zA-Z]*} in
				*E*) __lecafe_keep=1 ;;
				esac
				;;
			esac
			case $__lecafe_line in
			*errtrace*) __lecafe_keep=1 ;;
			*'source '* | *'. '*) __lecafe_wrap=1 __lecafe_errs=1 ;;
			*trap*[Ee][Rr][Rr]*) __lecafe_wrap=1 __lecafe_errs=1 ;;
			*trap*) __lecafe_wrap=1 ;;
			esac
		done
		# In the subshell a DEBUG trap would run all the same if functions
		# inherit it, and a script's own ERR trap needs the function below.
		case $__lecafe_apart,$__lecafe_functrace$__lecafe_errs in
		1,?*) __lecafe_arm= ;;
		1,) __lecafe_wrap= ;;
		esac
		case $__lecafe_wrap,"${__lecafe_text[*]}" in
		1,*PIPESTATUS*) __lecafe_arm= ;;
		esac
	else
		__lecafe_arm=
	fi
	unset __lecafe_text __lecafe_line __lecafe_word

	if [ -n "$__lecafe_arm" ] && { [ -d /run/lecafe/trap ] || (umask 077 && mkdir -p /run/lecafe/trap); } 2> /dev/null; then
		# One line a failure: version, time, process, exit code, line, depth of
		# subshells, errexit, background, file, command; tab-separated, the last
		# two quoted.
		# A loop that fails for ever stops being recorded. Commands that are
		# questions do not count as failures unless set -e makes them fatal.
		__lecafe_record() {
			[ "$1" != 0 ] || return 0
			if [ -n "$__lecafe_apart" ] && [ "$2" -gt 0 ] && mapfile -t -s "$(($2 - 1))" -n 1 MAPFILE < "$4"; then
				# BASH_COMMAND is the trap's own here: the line has to do.
				set -- "$1" "$2" "${MAPFILE[0]#"${MAPFILE[0]%%[! $'\t']*}"}" "$4" "$5"
				set -- "$1" "$2" "${3#*'|| : "$_"; '}" "$4" "$5"
			fi
			case $-,$3 in
			*e*,*) ;;
			*,'[ '* | *,'[['* | *,'(('* | *,'test '* | *,'let '*) return "$5" ;;
			esac
			local -a __lecafe_seen=()
			local __lecafe_e=0 __lecafe_bg=0 __lecafe_pid=$BASHPID __lecafe_deep=$BASH_SUBSHELL
			case $- in *e*) __lecafe_e=1 ;; esac
			# A script that looks at $? next handles the failure itself.
			if [ "$__lecafe_e" = 0 ] && [ -r "$4" ]; then
				mapfile -t -s "$(($2 - 1))" -n 2 __lecafe_seen < "$4"
				case ${__lecafe_seen[*]} in
				*=\$\?* | *=\"\$\?* | *'[ '*\$\?* | *'[['*\$\?* | *'(('*\$\?* | *'case '*\$\?* | *'test '*\$\?* | *'return $?'* | *'exit $?'*) return "$5" ;;
				esac
				__lecafe_seen=()
			fi
			if [ -e "$__lecafe_file" ]; then
				mapfile -t -n 100 __lecafe_seen < "$__lecafe_file"
				[ "${#__lecafe_seen[@]}" -lt 100 ] || return "$5"
			fi
			# Without job control, what runs in the background ignores SIGINT or
			# SIGQUIT: bits 2 and 4 of what the kernel says.
			if [ "$BASH_SUBSHELL" != 0 ] && mapfile -t __lecafe_seen < "/proc/$BASHPID/status"; then
				case ${__lecafe_seen[*]} in
				*SigIgn:$'\t'???????????????[2-7a-f]*) __lecafe_bg=1 ;;
				esac
				if [ -n "$__lecafe_apart" ]; then
					__lecafe_deep=$((__lecafe_deep - 1))
					__lecafe_pid=${__lecafe_seen[*]#*PPid:}
					__lecafe_pid=$((${__lecafe_pid%%[A-Z]*}))
				fi
			fi
			builtin printf '1\t%(%s)T\t%s\t%s\t%s\t%s\t%s\t%s\t%q\t%q\n' -1 "$__lecafe_pid" "$1" "$2" "$__lecafe_deep" "$__lecafe_e" "$__lecafe_bg" "$4" "${3:0:1000}" >> "$__lecafe_file"
			return "$5"
		}
		__lecafe_trap='{ __lecafe_record "$?" "$LINENO" "$BASH_COMMAND" "${BASH_SOURCE[0]-}" 0 "$_"; } 2> /dev/null || : "$_"'
		[ -z "$__lecafe_apart" ] || __lecafe_trap='( __lecafe_record "$?" "$LINENO" "" "${BASH_SOURCE[0]-}" 0 || : ) 2> /dev/null'$__lecafe_quiet

		# A single command in the background never comes to a trap: bash runs it
		# in place of the child. The shell that started it has its exit code, and
		# keeps it until somebody waits: at the end of the script, what nobody
		# waited for is looked at. Returns what it is given.
		__lecafe_jobs() {
			if [ -n "${!-}" ] && [ "$BASHPID" = "$$" ] && LC_ALL=C builtin jobs -l >| "$__lecafe_file.jobs"; then
				( __lecafe_ended "$0" || :; ) < /dev/null > /dev/null
			fi
			return "$1"
		}
		__lecafe_ended() {
			builtin trap - ERR
			set +eux
			IFS=$' \t\n'
			shopt -u nocasematch failglob
			local -a jobs text known
			local line pid code=0 command='' n
			mapfile -t jobs < "$__lecafe_file.jobs"
			command rm -f -- "$__lecafe_file.jobs" || : >| "$__lecafe_file.jobs"
			mapfile -t text < "$1"
			[ ! -e "$__lecafe_file" ] || mapfile -t known < "$__lecafe_file"
			__lecafe_job() {
				[ "$code" != 0 ] || return 0
				# One that a subshell in the background recorded by itself is told.
				case " ${known[*]}" in *$'\t'"$pid"$'\t'*) return 0 ;; esac
				[ "${#known[@]}" -lt 100 ] || return 0
				for ((n = 0; n < ${#text[@]}; n++)); do
					case ${text[n]//[[:blank:]]/} in *"${command//[[:blank:]]/}"*'&'*) break ;; esac
				done
				n=$(((n + 1) % (${#text[@]} + 1)))
				builtin printf '1\t%(%s)T\t%s\t%s\t%s\t1\t0\t1\t%q\t%q\n' -1 "$pid" "$code" "$n" "$1" "${command:0:1000}" >> "$__lecafe_file"
			}
			for line in "${jobs[@]}"; do
				if [[ $line =~ ^\[[0-9]+\][-+\ ]\ +([0-9]+)\ Exit\ ([0-9]+)\ +(.*)$ ]]; then
					__lecafe_job "$1"
					pid=${BASH_REMATCH[1]} code=${BASH_REMATCH[2]} command=${BASH_REMATCH[3]}
				elif [[ $line =~ ^\[[0-9]+\][-+\ ]\ +([0-9]+)\ Done\ +(.*)$ ]]; then
					__lecafe_job "$1"
					pid=${BASH_REMATCH[1]} code=0 command=${BASH_REMATCH[2]}
				elif [[ $line =~ ^\ +[0-9]+\ (Exit\ ([0-9]+)|Done)?\ +\|\ (.*)$ ]]; then
					# A pipe's exit code is its last command's, with pipefail any.
					command+=" | ${BASH_REMATCH[3]}"
					[ -z "${BASH_REMATCH[1]}" ] || [[ -o pipefail && $code != 0 ]] || code=${BASH_REMATCH[2]:-0}
				elif [[ $line == [* ]]; then
					__lecafe_job "$1"
					code=0
				fi
			done
			__lecafe_job "$1"
		}
		__lecafe_exit='{ __lecafe_jobs "$?" "$_" && : "$_"; } 2> /dev/null'
		if [ -n "$__lecafe_wrap" ]; then
			__lecafe_mine=
			__lecafe_calls=
			__lecafe_before='{ __lecafe_record "$?" "$LINENO" "$BASH_COMMAND" "${BASH_SOURCE[0]-}" "$?" "$_"; } 2> /dev/null || { __lecafe_called "$LINENO" "${#FUNCNAME[@]}" "$?" "$_"; } 2> /dev/null || { '
			__lecafe_called() {
				case $__lecafe_calls in
				*" $1:$2 "*)
					__lecafe_calls=${__lecafe_calls/" $1:$2 "/}
					return 0
					;;
				esac
				return "$3"
			}
			# A script's own ERR trap runs as well, with $? as it was, and only
			# where it would have run: without -E not in functions and subshells.
			trap() {
				local __lecafe_arg __lecafe_n=0 __lecafe_depth __lecafe_has= __lecafe_end= __lecafe_action
				local -a __lecafe_other=()
				case ${1--p} in
				-l) ;;
				-p | -P)
					# What is the script's own, as it gave it.
					__lecafe_action=$(builtin trap "$@") || __lecafe_n=$?
					__lecafe_action=${__lecafe_action//"trap -- '$__lecafe_exit' EXIT"/}
					__lecafe_action=${__lecafe_action//"trap -- '$__lecafe_trap' ERR"/}
					__lecafe_action=${__lecafe_action//$'\n'"$__lecafe_exit"/}
					__lecafe_action=${__lecafe_action//"$__lecafe_exit; "/}
					__lecafe_action=${__lecafe_action//"$__lecafe_before"/}
					__lecafe_action=${__lecafe_action//$'\n'"}' ERR"/"' ERR"}
					# The function that this is has no ERR trap without -E.
					case $__lecafe_mine,${#FUNCNAME[@]},$__lecafe_action," ${*-} " in
					1,2,*"' ERR"*) ;;
					1,2,*,' '-[pP]' ' | 1,2,*,'  ' | 1,2,*' '[Ee][Rr][Rr]' '*)
						__lecafe_action+=$'\n'$(builtin trap "$__lecafe_own" ERR && builtin trap "${1--p}" ERR)
						;;
					esac
					__lecafe_action=${__lecafe_action//$'\n\n'/$'\n'}
					__lecafe_action=${__lecafe_action#$'\n'}
					__lecafe_action=${__lecafe_action%$'\n'}
					[ -z "$__lecafe_action" ] || builtin printf '%s\n' "$__lecafe_action"
					return "$__lecafe_n"
					;;
				*)
					[ "$1" != -- ] || shift
					for __lecafe_arg in "$@"; do
						if [ "$((__lecafe_n += 1))" -gt 1 ]; then
							case $__lecafe_arg in
							[Ee][Rr][Rr]) __lecafe_has=1 ;;
							0 | [Ee][Xx][Ii][Tt])
								if [ "$BASH_SUBSHELL" = 0 ]; then
									__lecafe_end=1
								else
									__lecafe_other+=("$__lecafe_arg")
								fi
								;;
							*) __lecafe_other+=("$__lecafe_arg") ;;
							esac
						fi
					done
					if [ "$#" = 1 ]; then
						case $1 in
						[Ee][Rr][Rr]) __lecafe_has=1 && set -- - ERR ;;
						0 | [Ee][Xx][Ii][Tt]) [ "$BASH_SUBSHELL" != 0 ] || { __lecafe_end=1 && set -- - EXIT; } ;;
						esac
					fi
					;;
				esac
				if [ -z "$__lecafe_has$__lecafe_end" ]; then
					builtin trap "$@" || return
					return 0
				fi
				__lecafe_action=$1
				# After the script's own, which may wait for its jobs; before it if
				# that may not come back.
				if [ -n "$__lecafe_end" ]; then
					case $__lecafe_action in
					- | '') builtin trap "$__lecafe_exit" EXIT ;;
					*__lecafe_jobs*) builtin trap "$__lecafe_action" EXIT ;;
					*ex[ei][ct]*[wj][ao][ib][ts]* | *[wj][ao][ib][ts]*ex[ei][ct]*) builtin trap "$__lecafe_action" EXIT ;;
					*exit* | *exec*) builtin trap "$__lecafe_exit; $__lecafe_action" EXIT ;;
					*) builtin trap "$__lecafe_action"$'\n'"$__lecafe_exit" EXIT ;;
					esac
				fi
				if [ -z "$__lecafe_has" ]; then
					:
				elif [ "$__lecafe_action" = - ]; then
					__lecafe_mine=
					builtin trap "$__lecafe_trap" ERR
					set -E
				else
					case $__lecafe_action in
					"${__lecafe_trap%% 0;*}"*) builtin trap "$__lecafe_action" ERR ;;
					*)
						# A command that was running when the trap was first set, as
						# the function that sets it, does not set it off.
						if [ -z "$__lecafe_mine" ]; then
							for ((__lecafe_n = 1; __lecafe_n < ${#FUNCNAME[@]} - 1; __lecafe_n++)); do
								__lecafe_depth=$((${#FUNCNAME[@]} - __lecafe_n - 1))
								[ "$__lecafe_depth" -gt 1 ] || __lecafe_depth=0
								__lecafe_calls+=" ${BASH_LINENO[__lecafe_n]}:$__lecafe_depth "
							done
						fi
						__lecafe_mine=1
						__lecafe_own=$__lecafe_action
						builtin trap "$__lecafe_before${__lecafe_action:-:}"$'\n}' ERR
						;;
					esac
					[ -n "$__lecafe_keep" ] || set +E
				fi
				[ "${#__lecafe_other[@]}" = 0 ] || builtin trap "$__lecafe_action" "${__lecafe_other[@]}" || return
			}
		fi
		builtin trap "$__lecafe_trap" ERR
		[ -n "$__lecafe_apart" ] || builtin trap "$__lecafe_exit" EXIT
		set -E
	fi
	;;
esac
: "$__lecafe_last"
