package ec2

import (
	"cmp"
	"slices"

	"github.com/lecafe/lecafe/lab/cloud/query"
)

// instanceType is a row of the small table of types the fake knows.
type instanceType struct {
	name      string
	arch      string
	vcpus     int
	mib       int
	burstable bool
	nitro     bool
}

// Sizes are those of https://docs.aws.amazon.com/ec2/latest/instancetypes/.
var instanceTypes = func() []instanceType {
	all := []instanceType{
		{"m1.small", "x86_64", 1, 1740, false, false},
		{"t2.nano", "x86_64", 1, 512, true, false}, {"t2.micro", "x86_64", 1, 1024, true, false},
		{"t2.small", "x86_64", 1, 2048, true, false}, {"t2.medium", "x86_64", 2, 4096, true, false},
	}
	for _, f := range []struct {
		family, arch string
		burstable    bool
		sizes        map[string][2]int
	}{
		{"t3", "x86_64", true, burstableSizes}, {"t3a", "x86_64", true, burstableSizes}, {"t4g", "arm64", true, burstableSizes},
		{"m5", "x86_64", false, generalSizes}, {"m6i", "x86_64", false, generalSizes}, {"m7i", "x86_64", false, generalSizes},
		{"m7a", "x86_64", false, generalSizes}, {"m6g", "arm64", false, generalSizes}, {"m7g", "arm64", false, generalSizes},
		{"c5", "x86_64", false, computeSizes}, {"c6i", "x86_64", false, computeSizes}, {"c7i", "x86_64", false, computeSizes},
		{"c6g", "arm64", false, computeSizes}, {"c7g", "arm64", false, computeSizes},
		{"r6i", "x86_64", false, memorySizes}, {"r7g", "arm64", false, memorySizes},
	} {
		for size, s := range f.sizes {
			all = append(all, instanceType{f.family + "." + size, f.arch, s[0], s[1] << 10 >> 1, f.burstable, true})
		}
	}
	slices.SortFunc(all, func(a, b instanceType) int { return cmp.Compare(a.name, b.name) })
	return all
}()

// vCPUs and half GiB.
var (
	burstableSizes = map[string][2]int{"nano": {2, 1}, "micro": {2, 2}, "small": {2, 4}, "medium": {2, 8}, "large": {2, 16}, "xlarge": {4, 32}, "2xlarge": {8, 64}}
	generalSizes   = map[string][2]int{"large": {2, 16}, "xlarge": {4, 32}, "2xlarge": {8, 64}, "4xlarge": {16, 128}}
	computeSizes   = map[string][2]int{"large": {2, 8}, "xlarge": {4, 16}, "2xlarge": {8, 32}, "4xlarge": {16, 64}}
	memorySizes    = map[string][2]int{"large": {2, 32}, "xlarge": {4, 64}, "2xlarge": {8, 128}, "4xlarge": {16, 256}}
)

func typeOf(name string) *instanceType {
	i, ok := slices.BinarySearchFunc(instanceTypes, name, func(t instanceType, name string) int { return cmp.Compare(t.name, name) })
	if !ok {
		return nil
	}
	return &instanceTypes[i]
}

// fits refuses a type that does not exist or whose architecture is not the
// image's.
func fits(name string, img *image) error {
	t := typeOf(name)
	if t == nil {
		return query.Errorf("InvalidParameterValue", "Invalid value '%s' for InstanceType.", name)
	}
	if t.arch != img.arch {
		return query.Errorf("InvalidParameterValue", "The architecture '%s' of the specified instance type does not match the architecture '%s' of the specified AMI. Specify an instance type and an AMI that have matching architectures, and try again.", t.arch, img.arch)
	}
	return nil
}
