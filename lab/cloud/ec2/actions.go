package ec2

// actions is everything the fake models; anything else answers
// UnsupportedOperation with the action's name.
var actions = map[string]action{
	"RunInstances":                  act((*call).runInstances),
	"DescribeInstances":             act((*call).describeInstances),
	"StartInstances":                act((*call).startInstances),
	"StopInstances":                 act((*call).stopInstances),
	"RebootInstances":               act((*call).rebootInstances),
	"TerminateInstances":            act((*call).terminateInstances),
	"DescribeInstanceStatus":        act((*call).describeInstanceStatus),
	"DescribeInstanceAttribute":     act((*call).describeInstanceAttribute),
	"ModifyInstanceAttribute":       act((*call).modifyInstanceAttribute),
	"ModifyInstanceMetadataOptions": act((*call).modifyInstanceMetadataOptions),
	"GetConsoleOutput":              act((*call).getConsoleOutput),

	"CreateImage":                          act((*call).createImage),
	"DescribeImages":                       act((*call).describeImages),
	"CopyImage":                            act((*call).copyImage),
	"RegisterImage":                        act((*call).registerImage),
	"DeregisterImage":                      act((*call).deregisterImage),
	"ModifyImageAttribute":                 act((*call).modifyImageAttribute),
	"DescribeImageAttribute":               act((*call).describeImageAttribute),
	"ResetImageAttribute":                  act((*call).resetImageAttribute),
	"EnableImageDeprecation":               act((*call).enableImageDeprecation),
	"DisableImageDeprecation":              act((*call).disableImageDeprecation),
	"EnableImage":                          act((*call).enableImage),
	"DisableImage":                         act((*call).disableImage),
	"EnableImageDeregistrationProtection":  act((*call).enableImageProtection),
	"DisableImageDeregistrationProtection": act((*call).disableImageProtection),

	"CreateSnapshot":            act((*call).createSnapshot),
	"DescribeSnapshots":         act((*call).describeSnapshots),
	"DeleteSnapshot":            act((*call).deleteSnapshot),
	"DescribeSnapshotAttribute": act((*call).describeSnapshotAttribute),
	"ModifySnapshotAttribute":   act((*call).modifySnapshotAttribute),
	"DescribeVolumes":           act((*call).describeVolumes),
	"DeleteVolume":              act((*call).deleteVolume),

	"CreateLaunchTemplate":           act((*call).createLaunchTemplate),
	"CreateLaunchTemplateVersion":    act((*call).createLaunchTemplateVersion),
	"ModifyLaunchTemplate":           act((*call).modifyLaunchTemplate),
	"DeleteLaunchTemplate":           act((*call).deleteLaunchTemplate),
	"DeleteLaunchTemplateVersions":   act((*call).deleteLaunchTemplateVersions),
	"DescribeLaunchTemplates":        act((*call).describeLaunchTemplates),
	"DescribeLaunchTemplateVersions": act((*call).describeLaunchTemplateVersions),

	"CreateSecurityGroup": act((*call).createSecurityGroup),
	"DeleteSecurityGroup": act((*call).deleteSecurityGroup),

	"CreateKeyPair":    act((*call).createKeyPair),
	"ImportKeyPair":    act((*call).importKeyPair),
	"DeleteKeyPair":    act((*call).deleteKeyPair),
	"DescribeKeyPairs": act((*call).describeKeyPairs),

	"CreateTags":   act((*call).createTags),
	"DeleteTags":   act((*call).deleteTags),
	"DescribeTags": act((*call).describeTags),
}
