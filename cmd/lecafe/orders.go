package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/urfave/cli/v2"

	"github.com/lecafe/lecafe/agent/orders"
	"github.com/lecafe/lecafe/internal/awsconf"
	"github.com/lecafe/lecafe/internal/exitcode"
)

func ordersCommand() *cli.Command {
	return &cli.Command{
		Name:  "orders",
		Usage: "work with orders that instances left behind",
		Subcommands: []*cli.Command{{
			Name:      "replay",
			Usage:     "send the orders that ending instances sealed to S3",
			ArgsUsage: "s3://BUCKET/PREFIX",
			Description: "Every object below the prefix whose name ends with " + orders.SealSuffix + " is sent to the queue, each order\n" +
				"under its own ID, and deleted once the queue has all of it. An object that is sent in part stays;\n" +
				"sending it again repeats orders under the same ID.",
			Flags: []cli.Flag{
				&cli.StringFlag{Name: "queue", Usage: "`NAME` or URL of the queue"},
				&cli.BoolFlag{Name: "dry-run", Usage: "list objects and their orders, send nothing"},
				&cli.BoolFlag{Name: "keep", Usage: "do not delete objects that were sent"},
				&cli.DurationFlag{Name: "timeout", Usage: "how long to try for each object", Value: 5 * time.Minute},
			},
			Action: replayOrders,
		}},
	}
}

type sealedStore interface {
	ListObjectsV2(context.Context, *s3.ListObjectsV2Input, ...func(*s3.Options)) (*s3.ListObjectsV2Output, error)
	GetObject(context.Context, *s3.GetObjectInput, ...func(*s3.Options)) (*s3.GetObjectOutput, error)
	DeleteObject(context.Context, *s3.DeleteObjectInput, ...func(*s3.Options)) (*s3.DeleteObjectOutput, error)
}

func replayOrders(c *cli.Context) error {
	bucket, prefix, _ := strings.Cut(strings.TrimPrefix(c.Args().First(), "s3://"), "/")
	// Without a slash the whole bucket is meant.
	if c.Args().Len() != 1 || !strings.HasPrefix(c.Args().First(), "s3://") || bucket == "" {
		return badRequest("orders replay takes one place, as s3://bucket/prefix")
	}
	if c.String("queue") == "" {
		return badRequest("orders replay needs --queue, the name or URL of the queue")
	}
	cfg, err := loadAWS(c)
	if err != nil {
		return err
	}
	store := sealedStore(awsconf.S3(cfg))
	queue := orders.NewClient(cfg, orders.DefaultConcurrency)
	log := slog.New(slog.NewTextHandler(c.App.ErrWriter, &slog.HandlerOptions{Level: slog.LevelError}))
	keys, err := sealedKeys(c.Context, store, bucket, prefix)
	if err != nil {
		return err
	}
	if !c.Bool("dry-run") {
		// A wrong queue is worth an early word, not five minutes of trying.
		if _, err := orders.LookUp(c.Context, queue, c.String("queue")); err != nil {
			return exitcode.With(exitcode.NotReady, fmt.Errorf("%w: check --queue and the region", err))
		}
	}
	var sent uint64
	var trouble []string
	for _, key := range keys {
		at := "s3://" + bucket + "/" + key
		list, err := readSealed(c.Context, store, bucket, key)
		if err != nil {
			trouble = append(trouble, fmt.Sprintf("%s: %v", at, err))
			continue
		}
		if c.Bool("dry-run") {
			fmt.Fprintf(c.App.Writer, "%s: %d orders\n", at, len(list))
			continue
		}
		ctx, cancel := context.WithTimeout(c.Context, c.Duration("timeout"))
		r, err := orders.Replay(ctx, queue, c.String("queue"), list, log)
		cancel()
		if err != nil {
			return err
		}
		sent += r.Sent
		fmt.Fprintf(c.App.Writer, "%s: %d sent\n", at, r.Sent)
		for _, p := range r.Parked {
			if p.Order != nil {
				trouble = append(trouble, fmt.Sprintf("%s: order %s refused: %s: %s", at, p.Order.ID, p.Code, p.Message))
			}
		}
		switch {
		case r.Left > 0:
			trouble = append(trouble, fmt.Sprintf("%s: %d orders not sent: %s", at, r.Left, r.Err))
		case len(r.Parked) == 0 && !c.Bool("keep"):
			if _, err := store.DeleteObject(c.Context, &s3.DeleteObjectInput{Bucket: &bucket, Key: aws.String(key)}); err != nil {
				trouble = append(trouble, fmt.Sprintf("%s: sent, but not deleted: %v", at, err))
			}
		}
		if c.Context.Err() != nil {
			return c.Context.Err()
		}
	}
	if !c.Bool("dry-run") {
		fmt.Fprintf(c.App.Writer, "%d objects, %d orders sent\n", len(keys), sent)
	}
	if len(trouble) > 0 {
		return fmt.Errorf("not everything was sent; what was not stays in S3:\n  %s", strings.Join(trouble, "\n  "))
	}
	return nil
}

// sealedKeys lists sealed objects in the order of their names.
func sealedKeys(ctx context.Context, store sealedStore, bucket, prefix string) ([]string, error) {
	var keys []string
	p := s3.NewListObjectsV2Paginator(store, &s3.ListObjectsV2Input{Bucket: &bucket, Prefix: &prefix})
	for p.HasMorePages() {
		page, err := p.NextPage(ctx)
		if err != nil {
			return nil, exitcode.With(exitcode.NotReady, fmt.Errorf("list s3://%s/%s: %w: check the name and that s3:ListBucket is allowed", bucket, prefix, err))
		}
		for _, o := range page.Contents {
			if strings.HasSuffix(aws.ToString(o.Key), orders.SealSuffix) {
				keys = append(keys, aws.ToString(o.Key))
			}
		}
	}
	return keys, nil
}

func readSealed(ctx context.Context, store sealedStore, bucket, key string) ([]*orders.Order, error) {
	out, err := store.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	if err != nil {
		return nil, err
	}
	defer out.Body.Close()
	return orders.ReadSealed(out.Body)
}
