package sdk

// registered is the plugin of this program. It is the one variable of the package: the functions that a WASM module exports
// are not called on a value, and a module does not run main.
var registered any

// Register says what this program serves: a vendor.Vendor or a vendor.Provisioner. Call it once, from the init function of the
// plugin's main package, because a WASM module runs nothing else before it is asked.
func Register(plugin any) {
	if plugin == nil || registered != nil {
		panic("sdk.Register takes one plugin, once")
	}
	registered = plugin
}
