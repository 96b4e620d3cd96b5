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
	# trap's text, a trace of its own descriptor the trap's commands; DEBUG
	# and RETURN traps would run for the trap's function too.
	case $- in *v*) __lecafe_arm= ;; esac
	if [ -n "$__lecafe_arm" ] && mapfile -t __lecafe_text < "$0" 2> /dev/null; then
		for __lecafe_line in "${__lecafe_text[@]}"; do
			# A script that loads this file by itself does so on its second line.
			__lecafe_line=${__lecafe_line#*'|| : "$_"; '}
			case $__lecafe_line in
			*trap*[Dd][Ee][Bb][Uu][Gg]* | *trap*[Rr][Ee][Tt][Uu][Rr][Nn]*) __lecafe_arm= ;;
			*BASH_XTRACEFD* | *extdebug* | *functrace* | *verbose*) __lecafe_arm= ;;
			esac
			case $__lecafe_line in
			*'set -'[a-zA-Z]*)
				__lecafe_word=${__lecafe_line#*set -}
				case ${__lecafe_word%%[!a-zA-Z]*} in
				*[vT]*) __lecafe_arm= ;;
				esac
				case ${__lecafe_word%%[!a-zA-Z]*} in
				*E*) __lecafe_keep=1 ;;
				esac
				;;
			esac
			case $__lecafe_line in
			*errtrace*) __lecafe_keep=1 ;;
			*trap* | *'source '* | *'. '*) __lecafe_wrap=1 ;;
			esac
		done
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
			case $-,$3 in
			*e*,*) ;;
			*,'[ '* | *,'[['* | *,'(('* | *,'test '* | *,'let '*) return "$5" ;;
			esac
			local -a __lecafe_seen=()
			local __lecafe_e=0 __lecafe_bg=0
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
			fi
			builtin printf '1\t%(%s)T\t%s\t%s\t%s\t%s\t%s\t%s\t%q\t%q\n' -1 "$BASHPID" "$1" "$2" "$BASH_SUBSHELL" "$__lecafe_e" "$__lecafe_bg" "$4" "${3:0:1000}" >> "$__lecafe_file"
			return "$5"
		}
		__lecafe_trap='{ __lecafe_record "$?" "$LINENO" "$BASH_COMMAND" "${BASH_SOURCE[0]-}" 0 "$_"; } 2> /dev/null || : "$_"'
		if [ -n "$__lecafe_wrap" ]; then
			__lecafe_mine=
			__lecafe_calls=
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
				local __lecafe_arg __lecafe_n=0 __lecafe_depth __lecafe_has= __lecafe_action
				local -a __lecafe_other=()
				case ${1--p} in
				-p | -l | -P) ;;
				*)
					[ "$1" != -- ] || shift
					for __lecafe_arg in "$@"; do
						if [ "$((__lecafe_n += 1))" -gt 1 ]; then
							case $__lecafe_arg in
							[Ee][Rr][Rr] | [Ss][Ii][Gg][Ee][Rr][Rr]) __lecafe_has=1 ;;
							*) __lecafe_other+=("$__lecafe_arg") ;;
							esac
						fi
					done
					if [ "$#" = 1 ]; then
						case $1 in
						[Ee][Rr][Rr]) __lecafe_has=1 && set -- - ERR ;;
						esac
					fi
					;;
				esac
				if [ -z "$__lecafe_has" ]; then
					builtin trap "$@"
					return
				fi
				__lecafe_action=$1
				if [ "$__lecafe_action" = - ]; then
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
						builtin trap '{ __lecafe_record "$?" "$LINENO" "$BASH_COMMAND" "${BASH_SOURCE[0]-}" "$?" "$_"; } 2> /dev/null || { __lecafe_called "$LINENO" "${#FUNCNAME[@]}" "$?" "$_"; } 2> /dev/null || { '"${__lecafe_action:-:}"'
}' ERR
						;;
					esac
					[ -n "$__lecafe_keep" ] || set +E
				fi
				[ "${#__lecafe_other[@]}" = 0 ] || builtin trap "$__lecafe_action" "${__lecafe_other[@]}"
			}
		fi
		builtin trap "$__lecafe_trap" ERR
		set -E
	fi
	;;
esac
: "$__lecafe_last"
