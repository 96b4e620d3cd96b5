package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/urfave/cli/v2"

	"github.com/lecafe/lecafe/agent/settings"
	"github.com/lecafe/lecafe/internal/exitcode"
	"github.com/lecafe/lecafe/userdata"
)

func userdataWrapCommand() *cli.Command {
	return &cli.Command{
		Name:      "wrap",
		Usage:     "have a payload watched on images that lecafe did not bake",
		ArgsUsage: "FILE|-",
		Description: "The wrapped payload fetches lecafe-agent from S3 with the instance's role, pinned by\n" +
			"SHA-256, and records what fails in bash and sh scripts and in runcmd, for which the boot waits up to\n" +
			"75 seconds for the agent. Everything else in the payload stays as it is, and runs without the\n" +
			"agent too. The agent's programs are put under --agent-to; instances need s3:GetObject there.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "agent-to", Usage: "put the agent's programs under `s3://BUCKET/PREFIX`", Required: true},
			&cli.StringSliceFlag{Name: "agent", Usage: "the agent for an architecture, `ARCH=FILE` as amd64=FILE (default: lecafe-agent-linux-amd64, -arm64 and lecafe-agent beside lecafe)"},
			&cli.BoolFlag{Name: "no-upload", Usage: "the programs are there already"},
			&cli.StringSliceFlag{Name: "settings", Usage: "agent settings `FILE`; later ones win"},
			&cli.StringSliceFlag{Name: "set", Usage: "one setting, `PATH=VALUE` as report.s3.bucket=NAME; over --settings"},
			&cli.StringSliceFlag{Name: "ignore", Usage: "leave out a `RULE` of lecafe userdata lint"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write to `FILE` instead of stdout"},
		},
		Action: userdataWrap,
	}
}

func userdataPackCommand() *cli.Command {
	return &cli.Command{
		Name:      "pack",
		Usage:     "move a payload that is over 16 KB to S3, behind a small loader",
		ArgsUsage: "FILE|-",
		Description: "What is printed is the loader: user data that fetches the payload with the instance's role,\n" +
			"pinned by SHA-256. The boot waits for it up to five minutes; if it cannot be had, a script fails\n" +
			"in its place. Instances need s3:GetObject on the object.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "to", Usage: "put the payload under `s3://BUCKET/PREFIX`", Required: true},
			&cli.StringSliceFlag{Name: "ignore", Usage: "leave out a `RULE` of lecafe userdata lint"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write to `FILE` instead of stdout"},
		},
		Action: userdataPack,
	}
}

// onePayload reads the file that the command is about and refuses what cannot
// work as it is.
func onePayload(c *cli.Context, ignore ...string) ([]byte, error) {
	if c.NArg() != 1 {
		return nil, badRequest("give one file of user data, or - for standard input")
	}
	if err := checkOutput(c); err != nil {
		return nil, err
	}
	ignore = append(ignore, c.StringSlice("ignore")...)
	if err := userdata.CheckRules(ignore); err != nil {
		return nil, badRequest("--ignore: %w", err)
	}
	name := c.Args().First()
	body, err := readPayload(c, name)
	if err != nil {
		return nil, exitcode.With(exitcode.BadRequest, err)
	}
	return body, refuseErrors(c.App.ErrWriter, name, body, ignore)
}

func userdataWrap(c *cli.Context) error {
	// The limit is for what comes out.
	payload, err := onePayload(c, "too-large")
	if err != nil {
		return err
	}
	s, err := readSettings(c.StringSlice("settings"), c.StringSlice("set"))
	if err != nil {
		return exitcode.With(exitcode.BadRequest, err)
	}
	bucket, prefix, err := settings.SplitS3(c.String("agent-to"))
	if err != nil {
		return badRequest("--agent-to: %w", err)
	}
	programs, err := agentPrograms(c.StringSlice("agent"))
	if err != nil {
		return err
	}
	cfg, err := loadAWS(c)
	if err != nil {
		return err
	}
	in := userdata.WrapInput{Payload: payload, Settings: s, Agents: make(map[string]userdata.Object), Access: accessOf(cfg, s)}
	bodies := make(map[string][]byte)
	for machine, file := range programs {
		body, err := os.ReadFile(file)
		if err != nil {
			return exitcode.With(exitcode.BadRequest, fmt.Errorf("read agent: %w", err))
		}
		digest := digestOf(body)
		o := userdata.Object{Bucket: bucket, Key: path.Join(prefix, "lecafe-agent-"+machine+"-"+digest[:16]), SHA256: digest}
		in.Agents[machine], bodies[o.Key] = o, body
	}
	out, err := userdata.Wrap(in)
	if err != nil {
		return exitcode.With(exitcode.BadRequest, err)
	}
	if !c.Bool("no-upload") {
		for key, body := range bodies {
			if err := putObject(c.Context, cfg, bucket, key, body); err != nil {
				return err
			}
		}
	}
	return writePayload(c, out)
}

func userdataPack(c *cli.Context) error {
	payload, err := onePayload(c, "too-large")
	if err != nil {
		return err
	}
	bucket, prefix, err := settings.SplitS3(c.String("to"))
	if err != nil {
		return badRequest("--to: %w", err)
	}
	bundle, err := userdata.Pack(payload)
	if err != nil {
		return exitcode.With(exitcode.BadRequest, err)
	}
	cfg, err := loadAWS(c)
	if err != nil {
		return err
	}
	digest := digestOf(bundle)
	o := userdata.Object{Bucket: bucket, Key: path.Join(prefix, digest+".json"), SHA256: digest}
	out, err := userdata.Loader(userdata.LoaderInput{Payload: o, Access: accessOf(cfg, nil), Original: payload})
	if err != nil {
		return exitcode.With(exitcode.BadRequest, err)
	}
	if err := putObject(c.Context, cfg, bucket, o.Key, bundle); err != nil {
		return err
	}
	return writePayload(c, out)
}

func digestOf(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}

// accessOf says how instances reach the bucket that cfg reaches: through the
// same endpoint, where it is not AWS's.
func accessOf(cfg aws.Config, s *settings.Settings) userdata.Access {
	a := userdata.Access{Region: cfg.Region}
	if cfg.BaseEndpoint != nil {
		a.Endpoint = *cfg.BaseEndpoint
	}
	if s != nil {
		a.Proxy, a.CABundle = s.AWS.Proxy, s.AWS.CABundle
		if s.AWS.EndpointURL != "" {
			a.Endpoint = s.AWS.EndpointURL
		}
	}
	return a
}

func putObject(ctx context.Context, cfg aws.Config, bucket, key string, body []byte) error {
	client := s3.NewFromConfig(cfg, func(o *s3.Options) { o.UsePathStyle = cfg.BaseEndpoint != nil })
	if _, err := client.PutObject(ctx, &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: bytes.NewReader(body)}); err != nil {
		return fmt.Errorf("put s3://%s/%s: %w", bucket, key, err)
	}
	return nil
}

// agentPrograms finds the agent's programs by machine name: those given as
// ARCH=FILE, else those beside this program, lecafe-agent-linux-ARCH, or
// lecafe-agent for what it is for.
func agentPrograms(given []string) (map[string]string, error) {
	machines := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64, "x86_64": elf.EM_X86_64, "aarch64": elf.EM_AARCH64}
	names := map[elf.Machine]string{elf.EM_X86_64: "x86_64", elf.EM_AARCH64: "aarch64"}
	out := make(map[string]string)
	for _, g := range given {
		arch, file, ok := strings.Cut(g, "=")
		want, known := machines[arch]
		if !ok || !known || file == "" {
			return nil, badRequest("--agent %q: write amd64=FILE or arm64=FILE", g)
		}
		is, err := machineOf(file)
		if err != nil {
			return nil, badRequest("--agent %s: %w", g, err)
		}
		if is != want {
			return nil, badRequest("--agent %s: the program is for %s", g, is)
		}
		out[names[want]] = file
	}
	if len(out) > 0 {
		return out, nil
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find programs: %w", err)
	}
	for _, name := range []string{"lecafe-agent-linux-amd64", "lecafe-agent-linux-arm64", "lecafe-agent"} {
		file := filepath.Join(filepath.Dir(self), name)
		is, err := machineOf(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, exitcode.With(exitcode.NotReady, fmt.Errorf("%w; name another with --agent", err))
		}
		if machine := names[is]; machine != "" && out[machine] == "" {
			out[machine] = file
		}
	}
	if len(out) == 0 {
		return nil, exitcode.With(exitcode.NotReady, fmt.Errorf("there is no lecafe-agent beside %s; build it (make build) or name it with --agent amd64=FILE", self))
	}
	return out, nil
}

// machineOf is what a Linux program runs on.
func machineOf(file string) (elf.Machine, error) {
	f, err := elf.Open(file)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return 0, err
	}
	if err != nil {
		return 0, fmt.Errorf("%s is no Linux program: %w", file, err)
	}
	return f.Machine, f.Close()
}
