package sinks

import (
	"bytes"
	"context"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/lecafe/lecafe/agent/report"
)

type deleteObject func(context.Context, *s3.DeleteObjectInput, ...func(*s3.Options)) (*s3.DeleteObjectOutput, error)

// Marks says in S3 how far a boot is that is not judged yet: one empty object,
// see report.Mark. It is best effort. A mark that is lost is replaced by the
// report. Use it from one goroutine.
type Marks struct {
	Put            putObject
	Delete         deleteObject
	Bucket, Prefix string
	Sender         string
	Said           report.StageName   // whose mark is there
	Before         []report.StageName // whose marks an earlier run may have left
}

// Say puts the stage's mark in place of the one before.
func (m *Marks) Say(ctx context.Context, stage report.StageName) error {
	key := report.MarkOf(m.Prefix, m.Sender, stage).String()
	if _, err := m.Put(ctx, &s3.PutObjectInput{Bucket: &m.Bucket, Key: &key, Body: bytes.NewReader(nil)}); err != nil {
		return fmt.Errorf("mark stage %s in s3://%s: %w", stage, m.Bucket, err)
	}
	return m.leave(ctx, stage)
}

// Clear removes the mark.
func (m *Marks) Clear(ctx context.Context) error { return m.leave(ctx, "") }

// leave removes all marks but one. It fails where the role may not delete:
// watchers then take the latest mark, and none once there is a report.
func (m *Marks) leave(ctx context.Context, stage report.StageName) error {
	old := append(m.Before, m.Said)
	m.Before, m.Said = nil, stage
	for _, s := range old {
		if s == "" || s == stage {
			continue
		}
		key := report.MarkOf(m.Prefix, m.Sender, s).String()
		if _, err := m.Delete(ctx, &s3.DeleteObjectInput{Bucket: &m.Bucket, Key: &key}); err != nil {
			return fmt.Errorf("remove mark of stage %s from s3://%s: %w; allow the role s3:DeleteObject on %s", s, m.Bucket, err, m.Prefix+"/${aws:userid}/"+report.MarkDir+"/*")
		}
	}
	return nil
}
