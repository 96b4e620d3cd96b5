package ec2

// actions is everything the fake models; anything else answers
// UnsupportedOperation with the action's name.
var actions = map[string]action{
	"RunInstances":       act((*call).runInstances),
	"DescribeInstances":  act((*call).describeInstances),
	"StartInstances":     act((*call).startInstances),
	"StopInstances":      act((*call).stopInstances),
	"RebootInstances":    act((*call).rebootInstances),
	"TerminateInstances": act((*call).terminateInstances),

	"CreateImage":    act((*call).createImage),
	"DescribeImages": act((*call).describeImages),

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
