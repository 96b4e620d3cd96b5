package report_test

import (
	"bytes"
	"encoding/json"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/lecafe/lecafe/agent/report"
)

const schemaFile = "../../docs/report.schema.json"

func compiled(t *testing.T) *jsonschema.Schema {
	t.Helper()
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	s, err := c.Compile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func validate(t *testing.T, s *jsonschema.Schema, doc []byte) error {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(doc))
	if err != nil {
		t.Fatal(err)
	}
	return s.Validate(v)
}

// full is a report with every field set.
func full() *report.Report {
	at := time.Date(2026, 11, 22, 2, 16, 0, 123456789, time.FixedZone("CET", 3600))
	exit := 22
	return &report.Report{
		ID: report.NewID(), Kind: report.KindBootstrap, Verdict: report.Failure, Summary: "The script part-001 failed.",
		Causes: []report.Cause{{
			Stage: report.StageCloudFinal, Code: report.CodeScriptExit, Severity: report.SeverityFailure, Message: "It exited with 22.",
			Fix: "Look at line 12.", ExitCode: &exit, Signal: "SIGKILL", File: "part-001", Line: 12, Column: 3,
			Command: "curl -f https://u:hunter2@example.com", Unit: "cloud-final.service", Output: []string{"PASSWORD=hunter2"},
		}},
		Stages: []report.Stage{{Name: report.StageCloudFinal, Status: "failure", StartedAt: &at, FinishedAt: &at}},
		Instance: report.Instance{
			ID: "i-0abc1234def567890", Type: "t3.micro", ImageID: "ami-0abc", Region: "eu-west-1", AvailabilityZone: "eu-west-1a",
			AccountID: "123456789012", Architecture: "x86_64", AutoScalingGroup: "g", LaunchTemplateID: "lt-0abc",
			LaunchTemplateVersion: "3", LifecycleState: "InService", BakeID: "b",
		},
		Sender:   "AROAEXAMPLEEXAMPLE12:i-0abc1234def567890",
		UserData: report.UserData{SHA256: strings.Repeat("a", 64), Size: 12, Format: "shell-script"},
		Agent:    report.Agent{Version: "dev"},
		CloudInit: report.CloudInit{
			Version: "22.4.2", Status: "error", Datasource: "DataSourceEc2Local", Errors: []string{"e"}, Warnings: []string{"token=abc"},
		},
		BootID: "0e1e2d3c", BootedAt: at, JudgedAt: at, DeadlineSeconds: 600, LogTail: []string{"secret: abc"},
	}
}

func TestReportsMatchTheSchema(t *testing.T) {
	s := compiled(t)
	for name, r := range map[string]*report.Report{
		"full": full(),
		"least": {ID: report.NewID(), Kind: report.KindStart, Verdict: report.Success, BootedAt: time.Now(), JudgedAt: time.Now(),
			UserData: report.UserData{Format: "none"}},
	} {
		doc, err := report.Encode(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate(t, s, doc); err != nil {
			t.Errorf("%s: %v\n%s", name, err, doc)
		}
	}
}

func TestTheSchemaRefuses(t *testing.T) {
	s := compiled(t)
	for name, change := range map[string]func(map[string]any){
		"another schema":  func(m map[string]any) { m["schema"] = "lecafe.report/v2" },
		"unknown verdict": func(m map[string]any) { m["verdict"] = "fine" },
		"no id":           func(m map[string]any) { delete(m, "id") },
		"bad id":          func(m map[string]any) { m["id"] = "../../x" },
		"bad sender":      func(m map[string]any) { m["sender"] = "someone" },
		"bad time":        func(m map[string]any) { m["judged_at"] = "yesterday" },
		"unknown code":    func(m map[string]any) { m["causes"].([]any)[0].(map[string]any)["code"] = "made_up" },
		"line 0":          func(m map[string]any) { m["causes"].([]any)[0].(map[string]any)["line"] = 0 },
		"causes null":     func(m map[string]any) { m["causes"] = nil },
	} {
		doc, err := report.Encode(full())
		if err != nil {
			t.Fatal(err)
		}
		var m map[string]any
		if err := json.Unmarshal(doc, &m); err != nil {
			t.Fatal(err)
		}
		change(m)
		doc, err = json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if validate(t, s, doc) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// node is what of a schema object the types are compared with.
type node struct {
	Ref        string           `json:"$ref"`
	Properties map[string]*node `json:"properties"`
	Required   []string         `json:"required"`
	Items      *node            `json:"items"`
	Enum       []string         `json:"enum"`
	Defs       map[string]*node `json:"$defs"`
}

func TestTypesAndSchemaAgree(t *testing.T) {
	data, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	var root node
	if err := json.Unmarshal(data, &root); err != nil {
		t.Fatal(err)
	}
	compare(t, &root, &root, reflect.TypeFor[report.Report](), "report")

	var codes []string
	for _, c := range report.Codes() {
		codes = append(codes, string(c))
	}
	if d := cmp.Diff(codes, root.Defs["code"].Enum); d != "" {
		t.Errorf("codes (-types +schema):\n%s", d)
	}
}

func compare(t *testing.T, root, n *node, typ reflect.Type, path string) {
	t.Helper()
	for n.Ref != "" {
		n = root.Defs[strings.TrimPrefix(n.Ref, "#/$defs/")]
	}
	for typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	switch {
	case typ == reflect.TypeFor[time.Time]():
	case typ.Kind() == reflect.Slice && typ.Elem().Kind() == reflect.Struct:
		compare(t, root, n.Items, typ.Elem(), path+"[]")
	case typ.Kind() == reflect.Struct:
		var names, required []string
		for i := range typ.NumField() {
			name, opts, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			names = append(names, name)
			if opts != "omitempty" {
				required = append(required, name)
			}
			if p := n.Properties[name]; p != nil {
				compare(t, root, p, typ.Field(i).Type, path+"."+name)
			}
		}
		var props []string
		for name := range n.Properties {
			props = append(props, name)
		}
		for _, l := range [][]string{names, required, props, n.Required} {
			slices.Sort(l)
		}
		if d := cmp.Diff(names, props); d != "" {
			t.Errorf("%s: fields (-type +schema):\n%s", path, d)
		}
		if !slices.Equal(required, n.Required) {
			t.Errorf("%s: required: type %v, schema %v", path, required, n.Required)
		}
	}
}

func TestEncodeRedactsAndNormalises(t *testing.T) {
	doc, err := report.Encode(full())
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"hunter2", "=abc", ": abc"} {
		if bytes.Contains(doc, []byte(secret)) {
			t.Errorf("%q is in %s", secret, doc)
		}
	}
	if !bytes.Contains(doc, []byte(`"judged_at":"2026-11-22T01:16:00.123Z"`)) {
		t.Errorf("times are not UTC with milliseconds: %s", doc)
	}
	r, err := report.Decode(doc)
	if err != nil {
		t.Fatal(err)
	}
	again, err := report.Encode(r)
	if err != nil || !bytes.Equal(doc, again) {
		t.Errorf("encoding what was decoded differs (%v):\n%s\n%s", err, doc, again)
	}
}

func TestDecodeRefusesOtherSchemas(t *testing.T) {
	for _, doc := range []string{"", "[]", "{}", `{"schema":"lecafe.report/v2"}`} {
		if _, err := report.Decode([]byte(doc)); err == nil {
			t.Errorf("%q was read", doc)
		}
	}
}

func TestKeyRoundTrip(t *testing.T) {
	r := full()
	k := report.KeyOf("/a/b/", r)
	got, err := report.ParseKey(k.String())
	if err != nil || got != k {
		t.Errorf("%v: got %+v, want %+v", err, got, k)
	}
	if got.InstanceID() != r.Instance.ID {
		t.Errorf("instance ID %q", got.InstanceID())
	}
	for _, bad := range []string{"", "x.json", "a/b/c.json", strings.Replace(k.String(), ".json", ".txt", 1), strings.Replace(k.String(), "AROA", "aroa", 1)} {
		if _, err := report.ParseKey(bad); err == nil {
			t.Errorf("%q was read as a key", bad)
		}
	}
}
