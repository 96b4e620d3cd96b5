package main

import (
	"fmt"
	"maps"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/urfave/cli/v2"

	"github.com/lecafe/lecafe/lab"
	"github.com/lecafe/lecafe/stack"
)

// labStack is the name of the stack that --seed stack makes: lecafe stack's own
// default.
const labStack = "lecafe"

// seedStack makes a new lab's cloud what `lecafe stack up` makes of an account,
// by the same template and the same calls, and puts Le Café's configuration
// into its bucket. The commands find it by LECAFE_STACK.
func seedStack(c *cli.Context, l *lab.Lab) error {
	cfg := aws.Config{Region: lab.Region, BaseEndpoint: &l.URL, Credentials: credentials.NewStaticCredentialsProvider("test", "test", "")}
	s := &stack.Stack{Name: labStack, Clients: stack.NewClients(cfg), Interval: 10 * time.Millisecond}
	p, err := s.Plan(c.Context, stack.Request{})
	if err != nil {
		return fmt.Errorf("seed the lab with a stack: %w", err)
	}
	if err := p.Execute(c.Context); err != nil {
		return fmt.Errorf("seed the lab with a stack: %w", err)
	}
	out, err := s.Outputs(c.Context)
	if err != nil {
		return fmt.Errorf("seed the lab with a stack: %w", err)
	}
	l.S3.Fill(out["AssetsBucket"], maps.All(map[string][]byte{"app/config.txt": []byte(lab.Config)}))
	l.Stack = labStack
	fmt.Fprintf(c.App.ErrWriter, "stack %s is made: bake, deploy and watch take what they need from its outputs\n", labStack)
	return nil
}
