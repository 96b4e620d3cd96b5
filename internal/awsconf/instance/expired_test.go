package instance_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/lecafe/lecafe/internal/awsconf/instance"
)

// TestCredentialsThatAWSRefusesAreFetchedAgain pins that credentials which AWS
// calls expired are not used on until this machine's clock agrees: it may be
// hours behind.
func TestCredentialsThatAWSRefusesAreFetchedAgain(t *testing.T) {
	var vended atomic.Int32
	meta := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodPut:
			w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "21600")
			fmt.Fprint(w, "token")
		case strings.HasSuffix(r.URL.Path, "/security-credentials/"):
			fmt.Fprint(w, "app")
		default:
			fmt.Fprintf(w, `{"Code":"Success","AccessKeyId":"KEY%d","SecretAccessKey":"s","Token":"t","Expiration":%q}`, vended.Add(1), time.Now().Add(6*time.Hour).UTC().Format(time.RFC3339))
		}
	}))
	defer meta.Close()
	var code string
	aside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.Header.Get("Authorization"), "Credential=KEY1/") {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprintf(w, `<Error><Code>%s</Code><Message>No.</Message></Error>`, code)
		}
	}))
	defer aside.Close()
	for c, again := range map[string]bool{"ExpiredToken": true, "InvalidAccessKeyId": true, "NoSuchBucket": false} {
		vended.Store(0)
		code = c
		cfg, err := instance.Config(instance.Options{Region: "eu-west-1", Endpoint: aside.URL}, instance.IMDS(meta.URL), nil)
		if err != nil {
			t.Fatal(err)
		}
		put := func() error {
			_, err := instance.S3(cfg, "").PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("b"), Key: aws.String("k"), Body: strings.NewReader("x")})
			return err
		}
		if put() == nil {
			t.Fatalf("%s: the first call works", c)
		}
		if err := put(); (err == nil) != again {
			t.Errorf("%s: the second call: %v, %d credentials were asked for", c, err, vended.Load())
		}
	}
}
