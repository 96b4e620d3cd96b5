package cloud_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/aws/smithy-go"
)

func sha256Hex(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// queryError makes an API error of a query-protocol answer.
func queryError(resp *http.Response) error {
	if resp.StatusCode < 300 {
		return nil
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	e := &smithy.GenericAPIError{}
	for _, tag := range []struct {
		name string
		to   *string
	}{{"Code", &e.Code}, {"Message", &e.Message}} {
		_, rest, _ := strings.Cut(string(b), "<"+tag.name+">")
		value, _, _ := strings.Cut(rest, "</")
		*tag.to = value
	}
	if e.Code == "" || xml.Unmarshal(b, new(struct{})) != nil {
		return fmt.Errorf("answer %d is no error document: %s", resp.StatusCode, b)
	}
	return e
}

// toLoopback connects to the cloud whatever the name: *.localhost need not
// resolve everywhere.
func toLoopback(port int) *http.Transport {
	return &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, fmt.Sprintf("127.0.0.1:%d", port))
		},
	}
}
