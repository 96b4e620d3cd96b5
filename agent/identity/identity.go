// Package identity finds out who the instance is: its identity document, user
// data, tags and role, from IMDSv2 and STS. It asks each thing once and for as
// long as it takes; it keeps no credentials of its own and judges nothing.
package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/lecafe/lecafe/agent/report"
)

// maxUserData is more than EC2 gives; it bounds a metadata service gone wrong.
const maxUserData = 1 << 20

type metadata interface {
	GetDynamicData(context.Context, *imds.GetDynamicDataInput, ...func(*imds.Options)) (*imds.GetDynamicDataOutput, error)
	GetMetadata(context.Context, *imds.GetMetadataInput, ...func(*imds.Options)) (*imds.GetMetadataOutput, error)
	GetUserData(context.Context, *imds.GetUserDataInput, ...func(*imds.Options)) (*imds.GetUserDataOutput, error)
}

// ErrAbsent says that IMDS answered and does not have what was asked for.
var ErrAbsent = errors.New("not in instance metadata")

// Instance reads the identity document: one call.
func Instance(ctx context.Context, m metadata) (report.Instance, error) {
	out, err := m.GetDynamicData(ctx, &imds.GetDynamicDataInput{Path: "instance-identity/document"})
	if err != nil {
		return report.Instance{}, fmt.Errorf("read instance identity: %w", err)
	}
	defer out.Content.Close()
	var d struct {
		InstanceID       string `json:"instanceId"`
		InstanceType     string `json:"instanceType"`
		ImageID          string `json:"imageId"`
		Region           string `json:"region"`
		AvailabilityZone string `json:"availabilityZone"`
		AccountID        string `json:"accountId"`
		Architecture     string `json:"architecture"`
	}
	if err := json.NewDecoder(io.LimitReader(out.Content, maxUserData)).Decode(&d); err != nil {
		return report.Instance{}, fmt.Errorf("read instance identity: %w", err)
	}
	if d.InstanceID == "" || d.Region == "" {
		return report.Instance{}, errors.New("read instance identity: the document has no instance ID or region")
	}
	return report.Instance{
		ID: d.InstanceID, Type: d.InstanceType, ImageID: d.ImageID, Region: d.Region,
		AvailabilityZone: d.AvailabilityZone, AccountID: d.AccountID, Architecture: d.Architecture,
	}, nil
}

// UserData reads the user data, empty where there is none: one call.
func UserData(ctx context.Context, m metadata) ([]byte, error) {
	out, err := m.GetUserData(ctx, &imds.GetUserDataInput{})
	if status(err) == http.StatusNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read user data: %w", err)
	}
	defer out.Content.Close()
	b, err := io.ReadAll(io.LimitReader(out.Content, maxUserData))
	if err != nil {
		return nil, fmt.Errorf("read user data: %w", err)
	}
	return b, nil
}

// Metadata reads one leaf of meta-data: one call. ErrAbsent says there is none.
func Metadata(ctx context.Context, m metadata, path string) (string, error) {
	out, err := m.GetMetadata(ctx, &imds.GetMetadataInput{Path: path})
	if status(err) == http.StatusNotFound {
		return "", fmt.Errorf("%s: %w", path, ErrAbsent)
	}
	if err != nil {
		return "", fmt.Errorf("read instance metadata %s: %w", path, err)
	}
	defer out.Content.Close()
	b, err := io.ReadAll(io.LimitReader(out.Content, 64<<10))
	if err != nil {
		return "", fmt.Errorf("read instance metadata %s: %w", path, err)
	}
	return strings.TrimSpace(string(b)), nil
}

func status(err error) int {
	var re *smithyhttp.ResponseError
	if errors.As(err, &re) {
		return re.HTTPStatusCode()
	}
	return 0
}

// NoRole says whether err, of retrieving the role's credentials, means that the
// instance has no role at all: IMDS answered, and has no list of roles.
func NoRole(err error) bool {
	var re *smithyhttp.ResponseError
	if !errors.As(err, &re) || re.HTTPStatusCode() != http.StatusNotFound || re.Response == nil || re.Response.Request == nil {
		return false
	}
	return strings.HasSuffix(re.Response.Request.URL.Path, "/iam/security-credentials/")
}

// Answered says whether err came back from IMDS itself.
func Answered(err error) bool { return status(err) != 0 }

type caller interface {
	GetCallerIdentity(context.Context, *sts.GetCallerIdentityInput, ...func(*sts.Options)) (*sts.GetCallerIdentityOutput, error)
}

// Sender asks STS for the caller's ROLEID:instance-id.
func Sender(ctx context.Context, c caller) (string, error) {
	out, err := c.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	if err != nil {
		return "", fmt.Errorf("ask STS for the role ID: %w", err)
	}
	id := aws.ToString(out.UserId)
	if !strings.Contains(id, ":") {
		return "", fmt.Errorf("ask STS for the role ID: the caller %q is no role's session; the agent runs with an instance's role", aws.ToString(out.Arn))
	}
	return id, nil
}
