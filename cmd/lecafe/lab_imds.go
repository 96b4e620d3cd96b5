package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/lecafe/lecafe/internal/exitcode"
	"github.com/lecafe/lecafe/lab/cloud/wire"
	"github.com/lecafe/lecafe/lab/imds"
)

func labIMDSCommand() *cli.Command {
	return &cli.Command{
		Name: "imds", Usage: "serve one instance's metadata alone, IMDSv2 as EC2 has it",
		Description: "For trying what reads metadata without an instance: set AWS_EC2_METADATA_SERVICE_ENDPOINT to\n" +
			"the URL printed. Role credentials are random and open nothing.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "listen", Usage: "`ADDR` to listen on; credentials served there open nothing", Value: "127.0.0.1:0"},
			&cli.StringFlag{Name: "user-data", Usage: "`FILE` served as user data; 404 without"},
			&cli.StringFlag{Name: "instance-id", Usage: "`ID`", Value: "i-0123456789abcdef0"},
			&cli.StringFlag{Name: "instance-region", Usage: "`REGION` of the instance", Value: "us-east-1"},
			&cli.StringFlag{Name: "role", Usage: "`NAME` of the instance's role; no iam/ without"},
			&cli.StringSliceFlag{Name: "tag", Usage: "`KEY=VALUE` served as instance tag; repeatable"},
			&cli.BoolFlag{Name: "v1", Usage: "allow IMDSv1 (HttpTokens=optional)"},
		},
		Action: serveIMDS,
	}
}

func serveIMDS(c *cli.Context) error {
	i := imds.Instance{InstanceID: c.String("instance-id"), Region: c.String("instance-region"), Role: c.String("role"), Tags: map[string]string{}}
	if !instanceRE.MatchString(i.InstanceID) {
		return badRequest("--instance-id %q: want an ID, as i-0123456789abcdef0", i.InstanceID)
	}
	if file := c.String("user-data"); file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return exitcode.With(exitcode.BadRequest, fmt.Errorf("read user data: %w", err))
		}
		i.UserData = b
	}
	for _, t := range c.StringSlice("tag") {
		k, v, ok := strings.Cut(t, "=")
		if !ok || k == "" {
			return badRequest("--tag %q: give KEY=VALUE", t)
		}
		i.Tags[k], i.TagsInMetadata = v, true
	}
	if c.Bool("v1") {
		i.HTTPTokens = imds.TokensOptional
	}
	if i.Role != "" {
		vault := wire.NewVault(wire.Scaled(1))
		i.Credentials = func(d time.Duration) wire.Credentials { return vault.Vend(i.Role, i.InstanceID, d) }
		i.ProfileARN, i.ProfileID = "arn:aws:iam::"+wire.Account+":instance-profile/"+i.Role, "AIPALECAFELAB"
	}
	s := imds.New(i)
	ln, err := (&net.ListenConfig{}).Listen(c.Context, "tcp", c.String("listen"))
	if err != nil {
		return fmt.Errorf("serve metadata: %w", err)
	}
	srv := &http.Server{Handler: s, ConnContext: s.ConnContext, ReadHeaderTimeout: time.Minute}
	defer context.AfterFunc(c.Context, func() { _ = srv.Close() })()
	fmt.Fprintf(c.App.Writer, "export AWS_EC2_METADATA_SERVICE_ENDPOINT=http://%s\n", ln.Addr())
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metadata: %w", err)
	}
	return nil
}
