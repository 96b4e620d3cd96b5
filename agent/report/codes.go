package report

// Code names a kind of cause. Codes are a contract: none is renamed or reused
// for something else; new ones are added.
type Code string

const (
	// The payload.
	CodeUserDataNoHeader     Code = "user_data_no_header"     // neither #! nor #cloud-config nor MIME: nothing ran
	CodeUserDataLeadingBlank Code = "user_data_leading_blank" // blank line, spaces or BOM before the header
	CodeUserDataInvalidYAML  Code = "user_data_invalid_yaml"
	CodeUserDataUnknownKey   Code = "user_data_unknown_key" // cloud-config key nobody reads, as runcmds
	CodeUserDataWrongType    Code = "user_data_wrong_type"
	CodeUserDataInvalidMIME  Code = "user_data_invalid_mime"
	CodeUserDataEncoding     Code = "user_data_encoding" // base64 twice, broken gzip, not text
	CodeUserDataPlaceholder  Code = "user_data_placeholder"
	CodeUserDataBadValue     Code = "user_data_bad_value" // a value that its module cannot use, as broken base64
	CodeUserDataNotRun       Code = "user_data_not_run"   // a part that should have run and did not

	// Scripts.
	CodeScriptExit        Code = "script_exit"           // the script ended with a non-zero exit code
	CodeScriptSignal      Code = "script_signal"         // the script was killed
	CodeScriptSyntax      Code = "script_syntax"         // it does not parse
	CodeScriptInterpreter Code = "script_interpreter"    // its interpreter is missing
	CodeCommandFailed     Code = "script_command_failed" // a command failed, nobody handled it, the script went on
	CodeBackgroundFailed  Code = "script_background_failed"
	CodeRuncmdFailed      Code = "runcmd_failed"

	// cloud-init.
	CodeModuleFailed      Code = "cloud_init_module_failed"
	CodePackageFailed     Code = "package_install_failed"
	CodeCloudInitError    Code = "cloud_init_error"
	CodeCloudInitWarning  Code = "cloud_init_warning"
	CodeCloudInitDisabled Code = "cloud_init_disabled"
	CodeDatasourceNone    Code = "datasource_none" // cloud-init did not find IMDS: no user data was seen

	// Time.
	CodeDeadline Code = "deadline_exceeded" // Stage and Command say what was running

	// Identity.
	CodeIMDSUnreachable     Code = "imds_unreachable"
	CodeRoleMissing         Code = "role_missing"        // no instance profile
	CodeCredentialsMissing  Code = "credentials_missing" // a profile, but no credentials by the deadline
	CodeCredentialsRejected Code = "credentials_rejected"
	CodeClockSkew           Code = "clock_skew"
	CodeNetworkUnreachable  Code = "network_unreachable"

	// Config and queue.
	CodeConfigMissing     Code = "config_missing"
	CodeConfigDenied      Code = "config_denied" // without s3:ListBucket a missing key looks like this too
	CodeConfigUnreachable Code = "config_unreachable"
	CodeConfigInvalid     Code = "config_invalid" // checksum, size, validation command
	CodeConfigRolledBack  Code = "config_rolled_back"
	CodeQueueMissing      Code = "queue_missing"
	CodeQueueDenied       Code = "queue_denied"
	CodeQueueUnreachable  Code = "queue_unreachable"
	CodeOrdersParked      Code = "orders_parked"

	// The machine and the application.
	CodeUnitFailed    Code = "unit_failed"
	CodeAppNotReady   Code = "application_not_ready"
	CodeDiskFull      Code = "disk_full"
	CodeInterrupted   Code = "bootstrap_interrupted" // rebooted before the bootstrap had ended
	CodeSettings      Code = "settings_invalid"      // the agent's own settings
	CodeBuildStep     Code = "build_step_failed"
	CodeBuildFindings Code = "build_findings" // inspection found what must not be in an image
)

// Codes returns every cause code, in the order of their declaration.
func Codes() []Code {
	return []Code{
		CodeUserDataNoHeader, CodeUserDataLeadingBlank, CodeUserDataInvalidYAML, CodeUserDataUnknownKey,
		CodeUserDataWrongType, CodeUserDataInvalidMIME, CodeUserDataEncoding, CodeUserDataPlaceholder, CodeUserDataBadValue, CodeUserDataNotRun,
		CodeScriptExit, CodeScriptSignal, CodeScriptSyntax, CodeScriptInterpreter, CodeCommandFailed, CodeBackgroundFailed,
		CodeRuncmdFailed, CodeModuleFailed, CodePackageFailed, CodeCloudInitError, CodeCloudInitWarning,
		CodeCloudInitDisabled, CodeDatasourceNone, CodeDeadline, CodeIMDSUnreachable, CodeRoleMissing,
		CodeCredentialsMissing, CodeCredentialsRejected, CodeClockSkew, CodeNetworkUnreachable, CodeConfigMissing,
		CodeConfigDenied, CodeConfigUnreachable, CodeConfigInvalid, CodeConfigRolledBack, CodeQueueMissing,
		CodeQueueDenied, CodeQueueUnreachable, CodeOrdersParked, CodeUnitFailed, CodeAppNotReady, CodeDiskFull,
		CodeInterrupted, CodeSettings, CodeBuildStep, CodeBuildFindings,
	}
}
