package agent_test

import "testing"

// TestTagsAsCloudInitWritesThem reads the copy under the name that cloud-init
// gives it, which is not the one in its documents.
func TestTagsAsCloudInitWritesThem(t *testing.T) {
	b := newBox(t, script)
	b.write("run/cloud-init/instance-data-sensitive.json", `{"ds":{"_doc":"x","meta-data":{"autoscaling":{"target-lifecycle-state":"InService"},"tags":{"instance":{
		"aws:autoscaling:groupName":"web","aws:ec2launchtemplate:id":"lt-1","aws:ec2launchtemplate:version":"7"}}}}}`)
	b.start()
	b.ran("part-001")
	b.cloudInit("modules-final", true)
	i := b.reports(1)[0].Instance
	if i.AutoScalingGroup != "web" || i.LaunchTemplateID != "lt-1" || i.LaunchTemplateVersion != "7" || i.LifecycleState != "InService" {
		t.Errorf("got %+v", i)
	}
}
