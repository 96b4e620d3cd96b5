package cloudformation

import (
	"testing"

	lecafe "github.com/lecafe/lecafe/stack"
)

// FuzzTemplate: whatever comes as a template is taken or refused, and what is
// taken can be evaluated without an end in a panic.
func FuzzTemplate(f *testing.F) {
	f.Add(string(lecafe.Template()))
	f.Add("Resources: {Q: {Type: AWS::SQS::Queue}}")
	f.Add("Resources: {Q: {Type: AWS::SQS::Queue, Properties: {QueueName: !Sub 'a-${Q.Arn}-${!x}'}}}")
	f.Add("Conditions: {A: !Not [!Equals [!Ref P, x]]}\nParameters: {P: {Type: String, Default: y}}\nResources: {Q: {Type: AWS::SQS::Queue, Condition: A}}\nOutputs: {O: {Value: !If [A, !Join [',', [a, b]], !Ref AWS::NoValue]}}")
	f.Add("Conditions: {A: !Condition A}\nResources: {Q: {Type: AWS::SQS::Queue, Condition: A}}")
	f.Fuzz(func(t *testing.T, body string) {
		d, err := parse(body)
		if err != nil {
			return
		}
		values, err := d.values(map[string]string{})
		if err != nil {
			return
		}
		if len(d.order) != len(d.resources) {
			t.Fatalf("%d of %d resources are in order", len(d.order), len(d.resources))
		}
		st := &stack{name: "s", id: "arn:aws:cloudformation:us-east-1:000000000000:stack/s/00000000"}
		sc := planned(st, d, values)
		for _, name := range d.order {
			_, _, _ = sc.properties(name) // either answer is one
		}
		_, _ = outputsOf(sc)
	})
}
