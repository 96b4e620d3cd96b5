package cloud_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/lecafe/lecafe/lab/cloud"
)

// Whatever is sent unsigned is refused, and nothing of it breaks the router.
func FuzzUnsignedRequests(f *testing.F) {
	f.Add("GET", "/bucket/key?versions", "", "", "")
	f.Add("POST", "/", "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/sqs/aws4_request, SignedHeaders=host, Signature=00", "AmazonSQS.SendMessage", `{"QueueUrl":"x"}`)
	f.Add("POST", "/", "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/ec2/aws4_request, SignedHeaders=host, Signature=00", "", "Action=RunInstances&InstanceId.1=i")
	f.Add("PUT", "/b/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=test%2F20260101%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20260101T000000Z&X-Amz-Expires=1&X-Amz-SignedHeaders=host&X-Amz-Signature=0", "", "", "x")
	f.Fuzz(func(t *testing.T, method, target, authorization, action, body string) {
		r, err := http.NewRequest(method, "http://127.0.0.1"+target, strings.NewReader(body))
		if err != nil {
			return
		}
		r.Header.Set("Authorization", authorization)
		r.Header.Set("X-Amz-Date", "20260101T000000Z")
		if action != "" {
			r.Header.Set("X-Amz-Target", action)
		} else if method == http.MethodPost {
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		c := cloud.New(cloud.Options{})
		defer c.Close()
		w := httptest.NewRecorder()
		c.ServeHTTP(w, r)
		if w.Code < 400 {
			t.Errorf("%s %s: %d %s", method, target, w.Code, w.Body)
		}
		if calls := c.Calls(); len(calls) != 1 || calls[0].Status != w.Code || calls[0].Caller.UserID != "" {
			t.Errorf("noted %+v", calls)
		}
	})
}
