package s3_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

func TestListing(t *testing.T) {
	_, c, _ := start(t)
	for _, k := range []string{"a", "b/1", "b/2", "b/x/3", "c d+e", "c/é", "d/1", "e"} {
		put(t, c, k, k)
	}
	list := func(in s3.ListObjectsV2Input) (keys []string, pages int) {
		t.Helper()
		in.Bucket = aws.String(bucket)
		p := s3.NewListObjectsV2Paginator(c, &in)
		for p.HasMorePages() {
			out, err := p.NextPage(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if n := len(out.Contents) + len(out.CommonPrefixes); n > int(aws.ToInt32(out.MaxKeys)) || n != int(*out.KeyCount) {
				t.Errorf("page of %d, KeyCount %d", n, *out.KeyCount)
			}
			var page []string
			for _, o := range out.Contents {
				page = append(page, *o.Key)
			}
			for _, o := range out.CommonPrefixes {
				page = append(page, *o.Prefix)
			}
			slices.Sort(page)
			keys = append(keys, page...)
			pages++
		}
		return keys, pages
	}
	slash := aws.String("/")
	for name, tt := range map[string]struct {
		in    s3.ListObjectsV2Input
		want  string
		pages int
	}{
		"all":                  {s3.ListObjectsV2Input{}, "a|b/1|b/2|b/x/3|c d+e|c/é|d/1|e", 1},
		"pages":                {s3.ListObjectsV2Input{MaxKeys: aws.Int32(3)}, "a|b/1|b/2|b/x/3|c d+e|c/é|d/1|e", 3},
		"pages that fit":       {s3.ListObjectsV2Input{MaxKeys: aws.Int32(4)}, "a|b/1|b/2|b/x/3|c d+e|c/é|d/1|e", 2},
		"prefix":               {s3.ListObjectsV2Input{Prefix: aws.String("b/")}, "b/1|b/2|b/x/3", 1},
		"delimiter":            {s3.ListObjectsV2Input{Delimiter: slash}, "a|b/|c d+e|c/|d/|e", 1},
		"delimiter in pages":   {s3.ListObjectsV2Input{Delimiter: slash, MaxKeys: aws.Int32(2)}, "a|b/|c d+e|c/|d/|e", 3},
		"prefix and delimiter": {s3.ListObjectsV2Input{Prefix: aws.String("b/"), Delimiter: slash}, "b/1|b/2|b/x/", 1},
		"start after":          {s3.ListObjectsV2Input{StartAfter: aws.String("b/2"), MaxKeys: aws.Int32(2)}, "b/x/3|c d+e|c/é|d/1|e", 3},
		"start after no key":   {s3.ListObjectsV2Input{StartAfter: aws.String("b/1a")}, "b/2|b/x/3|c d+e|c/é|d/1|e", 1},
		"URL encoding":         {s3.ListObjectsV2Input{Prefix: aws.String("c"), EncodingType: "url"}, "c%20d%2Be|c/%C3%A9", 1},
		"nothing":              {s3.ListObjectsV2Input{Prefix: aws.String("zz")}, "", 1},
	} {
		t.Run(name, func(t *testing.T) {
			keys, pages := list(tt.in)
			if got := strings.Join(keys, "|"); got != tt.want || pages != tt.pages {
				t.Errorf("%s in %d pages, want %s in %d", got, pages, tt.want, tt.pages)
			}
		})
	}
	_, err := c.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: aws.String(bucket), ContinuationToken: aws.String("nonsense")})
	code(t, err, 400, "InvalidArgument")
	_, err = c.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: aws.String("nosuchbucket")})
	code(t, err, 404, "NoSuchBucket")

	v1, err := c.ListObjects(t.Context(), &s3.ListObjectsInput{Bucket: aws.String(bucket), Delimiter: slash, MaxKeys: aws.Int32(2)})
	if err != nil || aws.ToString(v1.NextMarker) != "b/" {
		t.Fatalf("%+v %v", v1, err)
	}
	v1, err = c.ListObjects(t.Context(), &s3.ListObjectsInput{Bucket: aws.String(bucket), Delimiter: slash, Marker: v1.NextMarker})
	if err != nil || len(v1.Contents) != 2 || len(v1.CommonPrefixes) != 2 || aws.ToBool(v1.IsTruncated) {
		t.Errorf("%+v %v", v1, err)
	}
}

func TestVersions(t *testing.T) {
	_, c, clock := start(t)
	ctx := t.Context()
	put(t, c, "k", "null")
	if _, err := c.PutBucketVersioning(ctx, &s3.PutBucketVersioningInput{Bucket: aws.String(bucket), VersioningConfiguration: &types.VersioningConfiguration{Status: "Enabled"}}); err != nil {
		t.Fatal(err)
	}
	one := put(t, c, "k", "one").VersionId
	clock.Advance(time.Second)
	del, err := c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: aws.String(bucket), Key: aws.String("k")})
	if err != nil || !aws.ToBool(del.DeleteMarker) || aws.ToString(del.VersionId) == "" {
		t.Fatalf("%+v %v", del, err)
	}
	_, _, err = get(t, c, &s3.GetObjectInput{Key: aws.String("k")})
	code(t, err, 404, "NoSuchKey")
	if got, _, err := get(t, c, &s3.GetObjectInput{Key: aws.String("k"), VersionId: one}); err != nil || got != "one" {
		t.Errorf("%q %v", got, err)
	}
	if got, _, err := get(t, c, &s3.GetObjectInput{Key: aws.String("k"), VersionId: aws.String("null")}); err != nil || got != "null" {
		t.Errorf("%q %v", got, err)
	}
	_, _, err = get(t, c, &s3.GetObjectInput{Key: aws.String("k"), VersionId: del.VersionId})
	code(t, err, 405, "MethodNotAllowed")
	_, _, err = get(t, c, &s3.GetObjectInput{Key: aws.String("k"), VersionId: aws.String("nosuch")})
	code(t, err, 404, "NoSuchVersion")
	if out, err := c.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: aws.String(bucket)}); err != nil || len(out.Contents) != 0 {
		t.Errorf("%+v %v", out, err)
	}

	// Every version, a page at a time.
	var seen []string
	in := &s3.ListObjectVersionsInput{Bucket: aws.String(bucket), MaxKeys: aws.Int32(1)}
	for {
		out, err := c.ListObjectVersions(ctx, in)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range out.Versions {
			seen = append(seen, *v.VersionId)
			if aws.ToBool(v.IsLatest) {
				t.Errorf("latest %s under a delete marker", *v.VersionId)
			}
		}
		for _, m := range out.DeleteMarkers {
			seen = append(seen, *m.VersionId)
		}
		if !aws.ToBool(out.IsTruncated) {
			break
		}
		in.KeyMarker, in.VersionIdMarker = out.NextKeyMarker, out.NextVersionIdMarker
	}
	if want := []string{*del.VersionId, *one, "null"}; !slices.Equal(seen, want) {
		t.Errorf("versions %v, want %v", seen, want)
	}
	_, err = c.DeleteBucket(ctx, &s3.DeleteBucketInput{Bucket: aws.String(bucket)})
	code(t, err, 409, "BucketNotEmpty")
	if _, err := c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: aws.String(bucket), Key: aws.String("k"), VersionId: del.VersionId}); err != nil {
		t.Fatal(err)
	}
	if got, _, err := get(t, c, &s3.GetObjectInput{Key: aws.String("k")}); err != nil || got != "one" {
		t.Errorf("after the marker is gone: %q %v", got, err)
	}
	if conf, err := c.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: aws.String(bucket)}); err != nil || conf.Status != "Enabled" {
		t.Errorf("%+v %v", conf, err)
	}
}

func TestHundredThousandObjects(t *testing.T) {
	c, store, _ := start(t)
	const n = 100_000
	c.S3.Fill(bucket, func(yield func(string, []byte) bool) {
		for i := range n {
			if !yield(fmt.Sprintf("reports/AROA:i-%017x/boot.json", i), []byte(`{}`)) {
				return
			}
		}
	})
	seen, pages := 0, 0
	started := time.Now()
	p := s3.NewListObjectsV2Paginator(store, &s3.ListObjectsV2Input{Bucket: aws.String(bucket), Prefix: aws.String("reports/")})
	for p.HasMorePages() {
		out, err := p.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		seen += len(out.Contents)
		pages++
	}
	if seen != n || pages != n/1000 {
		t.Errorf("%d keys in %d pages", seen, pages)
	}
	t.Logf("%d keys in %d pages: %v", seen, pages, time.Since(started))
	started = time.Now()
	out, err := store.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: aws.String(bucket), Delimiter: aws.String("/")})
	if err != nil || len(out.CommonPrefixes) != 1 {
		t.Errorf("%+v %v", out, err)
	}
	t.Logf("one common prefix over them: %v", time.Since(started))
}
