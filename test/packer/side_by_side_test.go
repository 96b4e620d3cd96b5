package packer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lecafe/lecafe/agent/report"
	"github.com/lecafe/lecafe/bake/manifest"
	"github.com/lecafe/lecafe/lab"
	"github.com/lecafe/lecafe/lab/cloud/ec2"
	"github.com/lecafe/lecafe/test/boots"
	"github.com/lecafe/lecafe/userdata"
)

// sideBySide names the file that gets the table: `make bench-packer`.
const sideBySide = "LECAFE_SIDE_BY_SIDE"

// TestSideBySide bakes with lecafe and with Packer in clouds whose states last
// as long as AWS's, in real time, and compares what each adds to them. It
// takes minutes and proves nothing by itself: only make bench-packer runs it.
func TestSideBySide(t *testing.T) {
	file := os.Getenv(sideBySide)
	if file == "" {
		t.Skip("SKIPPED side by side with Packer, which takes minutes: make bench-packer runs it")
	}
	times := ec2.DefaultTimes
	cloud := times.Pending + times.Stopping + times.Image + times.ShuttingDown
	var out strings.Builder
	fmt.Fprintf(&out, "The cloud's own times: %s until running, %s until stopped, %s until the image is available, %s until terminated: %s a bake.\n",
		times.Pending, times.Stopping, times.Image, times.ShuttingDown, cloud)
	if os.Getenv("LECAFE_SIDE_BY_SIDE_ONLY") != "boots" {
		fmt.Fprintf(&out, "\nInstances that are records, with nothing to provision: the tool's own time alone.\n\n%s", table(t, cloud, map[string]func(*testing.T) run{
			"1 lecafe bake":                             records(lecafeRecords),
			"2 Packer, its defaults":                    records(packerRecords("")),
			"3 Packer, AWS_POLL_DELAY_SECONDS=2":        records(packerRecords("2")),
			"4 lecafe bake again, nothing has changed":  records(lecafeAgain),
			"5 lecafe bake, with a canary that says so": records(lecafeCanary),
		}))
	}
	if os.Getenv("LECAFE_SIDE_BY_SIDE_ONLY") != "records" {
		fmt.Fprintf(&out, "\nInstances that really boot (Debian 12 under systemd-nspawn), Le Café's recipe with agent, cleaning and inspection:\n\n%s", table(t, cloud, map[string]func(*testing.T) run{
			"1 lecafe bake":                      boots1(lecafeBoots),
			"2 Packer, its defaults":             boots1(packerBoots("")),
			"3 Packer, AWS_POLL_DELAY_SECONDS=2": boots1(packerBoots("2")),
		}))
	}
	if err := os.WriteFile(file, []byte(out.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

// run is what one tool needed for one image.
type run struct {
	took  time.Duration
	calls map[string]int // by service
}

// table runs the contenders one after the other, so that none takes another's
// processor, and writes a line of Markdown for each. Names begin with the
// line's place.
func table(t *testing.T, cloud time.Duration, contenders map[string]func(*testing.T) run) string {
	t.Helper()
	var out strings.Builder
	out.WriteString("| | in all | beyond the cloud's times | calls | of them |\n|---|---|---|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(contenders)) {
		t.Run(name, func(t *testing.T) {
			r := contenders[name](t)
			beyond := fmt.Sprintf("%.1f s", (r.took - cloud).Seconds())
			if r.took < cloud {
				beyond = "–"
			}
			all, parts := 0, []string{}
			for _, service := range slices.Sorted(maps.Keys(r.calls)) {
				all += r.calls[service]
				parts = append(parts, fmt.Sprintf("%d %s", r.calls[service], service))
			}
			fmt.Fprintf(&out, "| %s | %.1f s | %s | %d | %s |\n", name[2:], r.took.Seconds(), beyond, all, strings.Join(parts, ", "))
		})
	}
	return out.String()
}

// measure runs one command and counts the calls that it made: not those of
// instances, nor what a presigned URL was asked for.
func measure(t *testing.T, l *lab.Lab, env []string, name string, args ...string) run {
	t.Helper()
	before := len(l.Calls())
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = env
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	began := time.Now()
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(name), strings.Join(args, " "), err, out.String())
	}
	r := run{took: time.Since(began), calls: map[string]int{}}
	actions := map[string]int{}
	for _, c := range l.Calls()[before:] {
		if !c.Presigned && c.Caller.InstanceID == "" {
			r.calls[c.Service]++
			actions[c.Service+" "+c.Action]++
		}
	}
	t.Logf("%s %s\n%s\n%.1f s, calls %v", filepath.Base(name), strings.Join(args, " "), out.String(), r.took.Seconds(), actions)
	return r
}

// records gives a contender a cloud without machines.
func records(f func(*testing.T, *lab.Lab) run) func(*testing.T) run {
	return func(t *testing.T) run {
		l, err := lab.Start(t.Context(), lab.Options{Driver: lab.DriverNone, Seed: lab.LeCafe()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
		answer(t, l)
		return f(t, l)
	}
}

var urlLine = regexp.MustCompile(`(?m)^https?://\S+$`)

// answer is what every builder and canary says at once when it runs: done. It
// looks into the cloud itself, which counts as no call.
func answer(t *testing.T, l *lab.Lab) {
	said := make(chan string, 16)
	l.EC2.Watch(func(_, id string) {
		if i, ok := l.EC2.Instance(id); ok && i.State == "running" && i.Tags[manifest.TagRole] != "" {
			select {
			case said <- id:
			default:
			}
		}
	})
	done := map[string]bool{}
	go func() {
		for {
			select {
			case <-t.Context().Done():
				return
			case id := <-said:
				if i, ok := l.EC2.Instance(id); ok && !done[id] {
					done[id] = true
					if err := succeed(l, i); err != nil {
						t.Errorf("instance %s: %v", id, err)
					}
				}
			}
		}
	}()
}

func succeed(l *lab.Lab, i ec2.InstanceInfo) error { return result(l, i, report.Success) }

// result PUTs an instance's result.
func result(l *lab.Lab, i ec2.InstanceInfo, v report.Verdict) error {
	text := i.UserData
	if i.Tags[manifest.TagRole] == "canary" {
		p, err := userdata.Parse(text)
		if err != nil {
			return err
		}
		for _, part := range p.Parts {
			if strings.Contains(part.Name, "lecafe-canary.sh") {
				text = part.Body
			}
		}
	}
	resp, err := http.Get(urlLine.FindString(string(text)))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var m manifest.Manifest
	if err := json.NewDecoder(resp.Body).Decode(&m); err != nil {
		return err
	}
	body, err := json.Marshal(manifest.Result{BakeID: m.BakeID, Report: report.Report{
		Schema: report.Schema, ID: report.NewID(), Kind: report.KindBuild, Verdict: v, Instance: report.Instance{ID: i.InstanceID, BakeID: m.BakeID},
	}})
	if err != nil {
		return err
	}
	req, err := http.NewRequest(http.MethodPut, m.Result, bytes.NewReader(body))
	if err != nil {
		return err
	}
	put, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	if put.Body.Close(); put.StatusCode != http.StatusOK {
		return fmt.Errorf("PUT result: %s", put.Status)
	}
	return nil
}

// smallRecipe has as good as nothing to do.
func smallRecipe(t *testing.T, more string) string {
	return filepath.Join(write(t, map[string]string{"recipe.yaml": "name: small\nsource: {ssm_parameter: /aws/service/debian/release/12/latest/amd64}\nstaging: {bucket: lecafe-staging}\nimage: {}\nprovision:\n  - run: \"true\"\n" + more}), "recipe.yaml")
}

func lecafe(t *testing.T, l *lab.Lab, args ...string) run {
	t.Helper()
	bin := boots.Programs(t)
	return measure(t, l, append(os.Environ(), append(l.Env(), "XDG_STATE_HOME="+t.TempDir())...), filepath.Join(bin, "lecafe"), args...)
}

func lecafeRecords(t *testing.T, l *lab.Lab) run { return lecafe(t, l, "bake", smallRecipe(t, "")) }

func lecafeAgain(t *testing.T, l *lab.Lab) run {
	recipe := smallRecipe(t, "")
	lecafe(t, l, "bake", recipe)
	return lecafe(t, l, "bake", recipe)
}

func lecafeCanary(t *testing.T, l *lab.Lab) run {
	return lecafe(t, l, "bake", smallRecipe(t, "canary: {}\n"))
}

// packerRecords builds with Packer's amazon-ebs and no communicator: there is
// no ssh to what does not boot.
func packerRecords(delay string) func(*testing.T, *lab.Lab) run {
	return func(t *testing.T, l *lab.Lab) run {
		p := newPacker(t, l)
		p.amazon()
		if delay != "" {
			p.env = append(p.env, "AWS_POLL_DELAY_SECONDS="+delay, "AWS_MAX_ATTEMPTS=1800")
		}
		dir := write(t, map[string]string{"image.pkr.hcl": fmt.Sprintf(`
packer {
  required_plugins {
    amazon = {
      source  = "github.com/hashicorp/amazon"
      version = ">= 1.3.4"
    }
  }
}
source "amazon-ebs" "small" {
  region                  = %q
  custom_endpoint_ec2     = %q
  skip_metadata_api_check = true
  ami_name                = "small-{{ timestamp }}"
  source_ami              = %q
  instance_type           = "t3.small"
  communicator            = "none"
  imds_support            = "v2.0"
  metadata_options {
    http_endpoint = "enabled"
    http_tokens   = "required"
  }
}
build {
  sources = ["source.amazon-ebs.small"]
}
`, lab.Region, l.URL, l.AMIs["debian-12"])})
		return measure(t, l, p.env, p.bin, "build", dir)
	}
}

// boots1 gives a contender a lab of its own whose instances boot.
func boots1(f func(*testing.T, *lab.Lab) run) func(*testing.T) run {
	return func(t *testing.T) run {
		return f(t, boots.Lab(t, []string{"debian-12"}, func(o *lab.Options) { o.TimeScale, o.AWSTimes = 0, true }))
	}
}

func lecafeBoots(t *testing.T, l *lab.Lab) run {
	return lecafe(t, l, "bake", "--set", "agent.aws.endpoint_url="+l.URL, recipes["lecafe-app"])
}

// packerBoots builds the template that lecafe makes of Le Café's recipe, over
// ssh, and without the template's own polling unless delay says so.
func packerBoots(delay string) func(*testing.T, *lab.Lab) run {
	return func(t *testing.T, l *lab.Lab) run {
		p := newPacker(t, l)
		p.amazon()
		dir := copied(t, recipes["lecafe-app"])
		cmd := exec.CommandContext(t.Context(), filepath.Join(p.own, "lecafe"), "packer", "template", "--set", "agent.aws.endpoint_url="+l.URL, filepath.Join(dir, "recipe.yaml"))
		cmd.Env = p.env
		made, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		text := strings.Replace(string(made), "  ami_name ", fmt.Sprintf("  custom_endpoint_ec2 = %q\n  ssh_host = \"127.0.0.1\"\n  ssh_port = %d\n  skip_metadata_api_check = true\n  ami_name ", l.URL, sshPort(t, l, 1)), 1)
		text = strings.Replace(text, "temporary_security_group_source_public_ip = true", `temporary_security_group_source_cidrs = ["192.0.2.1/32"]`, 1)
		for _, cut := range []struct{ from, to, with string }{
			{"# Asked anew at each build.\n", "}\n", ""}, // the data source has no setting for another endpoint
			{"  aws_polling {\n", "  }\n", ""},
		} {
			before, rest, ok := strings.Cut(text, cut.from)
			_, after, ok2 := strings.Cut(rest, cut.to)
			if !ok || !ok2 {
				t.Fatalf("no %q in the template:\n%s", cut.from, text)
			}
			text = before + cut.with + after
		}
		text = strings.Replace(text, "data.amazon-parameterstore.source.value", fmt.Sprintf("%q", l.AMIs["debian-12"]), 1)
		if err := os.WriteFile(filepath.Join(dir, "image.pkr.hcl"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if delay != "" {
			p.env = append(p.env, "AWS_POLL_DELAY_SECONDS="+delay, "AWS_MAX_ATTEMPTS=1800")
		}
		return measure(t, l, p.env, p.bin, "build", "-var", "ssh_username=debian", dir)
	}
}
