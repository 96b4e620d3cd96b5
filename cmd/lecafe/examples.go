package main

// examples are shown in the help of the command they are of.
var examples = map[string][]string{
	"lecafe audit": {
		"lecafe audit --all-regions",
		"lecafe audit --format sarif --ignore imds-v1:i-0123456789abcdef0@2027-01-31 > audit.sarif",
	},
	"lecafe connect":              {"lecafe connect i-0123456789abcdef0"},
	"lecafe deploy":               {"lecafe deploy --asg web --image latest --reports s3://my-reports/lecafe-reports --parameter /web/image"},
	"lecafe drill":                {"lecafe drill --case 'runcmd-*' recipe.yaml"},
	"lecafe inspect":              {"lecafe inspect --root /mnt/image"},
	"lecafe lab imds":             {"lecafe lab imds --user-data payload --role app --tag Name=web-1"},
	"lecafe lab run":              {"lecafe lab run -- bash", "lecafe lab run --driver none -- ./ci-test.sh"},
	"lecafe lab up":               {"lecafe lab up > lab.env   # and `. ./lab.env` in another terminal"},
	"lecafe launch-template diff": {"lecafe launch-template diff web 3 '$Latest'"},
	"lecafe launch-template publish": {
		"lecafe launch-template publish --name web --image ami-0123456789abcdef0 --instance-type t3.micro --instance-profile app --user-data payload",
		"lecafe launch-template publish --name web --source '$Latest' --image ami-0123456789abcdef0",
	},
	"lecafe orders replay": {"lecafe orders replay --queue orders --dry-run s3://left-behind/orders"},
	"lecafe policy watch":  {"lecafe policy watch --reports s3://my-reports/lecafe-reports --on-failure unhealthy > policy.json"},
	"lecafe stack up":      {"lecafe stack up", "lecafe stack up --image ami-0123456789abcdef0 --yes"},
	"lecafe userdata lint": {"lecafe userdata lint setup.sh base.yaml", "terraform output -raw user_data | lecafe userdata lint -"},
	"lecafe userdata pack": {"lecafe userdata pack --to s3://my-tools/payloads big.sh -o payload"},
	"lecafe userdata render": {
		"lecafe userdata render --settings agent.yaml --script setup.sh -o payload",
		"lecafe userdata render --set report.s3.bucket=my-reports --cloud-config base.yaml --script setup.sh",
	},
	"lecafe userdata wrap": {"lecafe userdata wrap --agent-to s3://my-tools/agents --set report.s3.bucket=my-reports setup.sh -o payload"},
	"lecafe watch": {
		"lecafe watch --wait --asg web --reports s3://my-reports/lecafe-reports",
		"lecafe watch --asg web --asg workers --on-failure unhealthy --webhook https://hooks.example.com/x --listen :9464",
		"lecafe watch --explain i-0123456789abcdef0",
	},
}
