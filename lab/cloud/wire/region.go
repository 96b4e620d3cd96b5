package wire

import "context"

type regionKey struct{}

// WithRegion returns ctx with the region of a request's credential scope in
// it: the one endpoint serves every region, and the scope tells them apart.
func WithRegion(ctx context.Context, region string) context.Context {
	return context.WithValue(ctx, regionKey{}, region)
}

// RegionFrom returns the region a request was signed for, empty when no one
// has said so.
func RegionFrom(ctx context.Context) string {
	r, _ := ctx.Value(regionKey{}).(string)
	return r
}
