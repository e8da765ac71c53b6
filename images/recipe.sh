# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# What the recipes beside this file share: Debian packages in, an OCI layout out. A recipe NAME/build sources it, sets
#
#   packages=(…)         the Debian packages that it wants; what they depend on comes with them
#   without=(…)          packages that are left out although others depend on them
#   base=NAME            the recipe of the image whose layers this one's lies upon; without one, there is one layer
#   bare=yes             the packages alone, without what they depend on, and no dpkg database
#   inputs=(…)           files outside of the recipe's folder that the image is made of
#
# defines make_root, which completes the directory $1 that the packages have been unpacked into, and calls build_image "$@".
# No package's script is run: what these would have done is written out in make_root and below.

images=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
recipe=$(cd "$(dirname "${BASH_SOURCE[1]}")" && pwd)
name=$(basename "$recipe")
cache=${BRIG_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/brig}
image_cache=${BRIG_IMAGE_CACHE:-$cache/images}
packages=() without=() inputs=() base='' bare=''
umask 022
export LC_ALL=C

say() { echo "images: $*" >&2; }
fail() { say "$@"; exit 1; }

# own UID:GID MODE PATH…: what is not root's. The files themselves stay the builder's; the owner is written into the layer.
own() {
	local owner=$1 mode=$2 path
	shift 2
	for path in "$@"; do
		chmod "$mode" "$root/$path"
		echo "$owner $path" >>"$owners"
	done
}

# add_user NAME ID HOME SHELL COMMENT: a user with a group of its own and no password, as adduser --system makes it.
add_user() {
	echo "$1:x:$2:$2:$5:$3:$4" >>"$root/etc/passwd"
	echo "$1:*:$shadow_day:0:99999:7:::" >>"$root/etc/shadow"
	echo "$1:x:$2:" >>"$root/etc/group"
	echo "$1:!::" >>"$root/etc/gshadow"
}

# Runs a program of the image on its own files, without any rights: root in a user namespace that has one user.
in_root() {
	unshare --map-root-user --mount chroot "$root" "$@" ||
		fail "cannot run $1 of the image: are user namespaces switched off (sysctl user.max_user_namespaces)?"
}

# Unpacks the files of Debian packages, with /bin, /lib, /lib64 and /sbin merged into /usr as Debian does, notes the owners
# that are not root, and writes the packages into dpkg's database, unless they are bare.
unpack_packages() {
	local file
	for file in "$@"; do
		dpkg-deb --fsys-tarfile "$file" >"$work/data.tar"
		note_owners <"$work/data.tar"
		# Names are rewritten: no link that stands in the root already is ever followed out of it.
		tar -x -p -C "$root" --no-same-owner -f "$work/data.tar" --transform 's,^\./\(bin\|lib\|lib64\|sbin\)\(/\|$\),./usr/\1\2,S' \
			--exclude='./usr/share/man/*' --exclude='./usr/share/info/*' --exclude='./usr/share/locale/*' \
			--exclude='./usr/share/lintian/*' --exclude='./usr/share/bug/*' --exclude='./usr/share/doc-base/*'
		[ "$bare" ] || register_package "$file"
		rm "$work/data.tar"
	done
	# The licences stay, documentation does not.
	[ -d "$root/usr/share/doc" ] || return 0
	find "$root/usr/share/doc" \( -type f ! -name copyright -o -mindepth 2 -type l \) -delete
	find "$root/usr/share/doc" -mindepth 1 -type d -empty -delete
}

note_owners() {
	tar -t -v --numeric-owner --full-time --quoting-style=literal |
		sed -nE '/^[^ ]+ +0\/0 /d; s,^[^ ]+ +([0-9]+)/([0-9]+) +[0-9]+ [^ ]+ [^ ]+ \./(.*[^/])/?$,\1:\2 \3,; T; s,( )(bin|lib|sbin)/,\1usr/\2/,; p' \
			>>"$owners"
}

# Writes a package into dpkg's database as it would itself, scripts included, for dpkg -l, -L, -S, -V and -r.
register_package() {
	local database=$root/var/lib/dpkg control=$work/control package script
	mkdir -p "$database"/{alternatives,info,parts,triggers,updates}
	if [ ! -e "$database/info/format" ]; then
		echo 1 >"$database/info/format"
		touch "$database"/{available,diversions,lock,statoverride}
	fi
	dpkg-deb -e "$1" "$control"
	package=$(sed -n 's/^Package: //p' "$control/control")
	# Packages that can be installed for several architectures have theirs in the files' names.
	! grep -q '^Multi-Arch: same' "$control/control" || package+=:$(sed -n 's/^Architecture: //p' "$control/control")
	{
		sed 's/^Package: .*/&\nStatus: install ok installed/' "$control/control"
		[ ! -s "$control/conffiles" ] || conffiles "$control/conffiles"
		echo
	} >>"$database/status"
	rm "$control/control"
	for script in "$control"/*; do [ ! -e "$script" ] || mv "$script" "$database/info/$package.${script##*/}"; done
	rmdir "$control"
	tar -t --quoting-style=literal -f "$work/data.tar" | sed 's,^\./$,/.,; s,^\./,/,; s,\(.\)/$,\1,' >"$database/info/$package.list"
}

# The field Conffiles of dpkg's status: each with the digest of what the package brought.
conffiles() {
	local path
	echo Conffiles:
	while read -r path; do
		echo " $path $(md5sum "$root$path" | cut -d' ' -f1)"
	done < <(sed 's/^remove-on-upgrade .*//; /^$/d' "$1")
}

# alternative LINK NAME PATH PRIORITY [--slave LINK NAME PATH]…
alternative() {
	# The log is below the root too, and has the hour in it.
	update-alternatives --quiet --root "$root" --log /alternatives.log --install "$@"
	rm "$root/alternatives.log"
}

# Builds the crate beside the recipe as a static program, whose path is then in $program. At a fixed address: each relocation
# and each library would be a page fault in the guest.
build_program() {
	local target=x86_64-unknown-linux-gnu target_dir=${CARGO_TARGET_DIR:-$images/../target}
	RUSTFLAGS='-C target-feature=+crt-static -C relocation-model=static' cargo build --manifest-path "$recipe/Cargo.toml" \
		--locked --profile release-small --target "$target" --target-dir "$target_dir"
	program=$target_dir/$target/release-small/$1
	inputs+=("$program")
}

# The directories that every image has, and the users of Debian's base-passwd, made as its postinst makes them.
add_base_files() {
	mkdir -p "$root"/{dev,etc,proc,root,run,sys,tmp,var/{cache,lib,log,tmp}}
	chmod 1777 "$root/tmp" "$root/var/tmp"
	chmod 700 "$root/root"
	cp "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd"
	cp "$root/usr/share/base-passwd/group.master" "$root/etc/group"
	echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
}

# The cache of the dynamic loader, by the image's own ldconfig: without it each library is looked for in many places.
cache_libraries() {
	in_root /sbin/ldconfig -i
	rm -f "$root"/var/cache/ldconfig/*
}

# The newest time among the files of packages: the same for the same versions. What is dpkg's own was written just now.
newest_time() {
	find "$root" -path "$root/var/lib/dpkg" -prune -o -type f -printf '%Ts\n' | sort -n | tail -n 1
}

# Puts the files of the packages into the array $files: of those that the base does not have.
find_packages() {
	local of_base=()
	files=()
	[ ${#packages[@]} -gt 0 ] || return 0
	if [ "$bare" ]; then
		mapfile -t files < <("$images/debian-package" "${packages[@]}")
	elif [ -z "$base" ]; then
		mapfile -t files < <("$images/debian-package" --with-dependencies "${packages[@]}")
	else
		mapfile -t of_base < <(grep -o '^[^ #]*' "$images/$base/packages")
		mapfile -t files < <(comm -13 <("$images/debian-package" --with-dependencies "${of_base[@]}") \
			<("$images/debian-package" --with-dependencies "${of_base[@]}" "${packages[@]}"))
	fi
	[ ${#files[@]} -gt 0 ] || exit 1
	local package
	for package in "${without[@]}"; do
		mapfile -t files < <(printf '%s\n' "${files[@]}" | grep -v "/${package}_[^/]*$")
	done
}

# Fills $root, in order: the base, the packages, what their scripts would do.
fill_root() {
	local layer directory
	if [ "$base" ]; then
		mkdir "$work/layout"
		tar -x -C "$work/layout" -f "$work/base.tar"
		for layer in $(manifest_layers "$work/layout"); do
			tar -x -p -z -C "$root" --no-same-owner -f "$work/layout/blobs/sha256/$layer"
		done
	else
		mkdir -p "$root"/usr/{bin,lib,lib64,sbin}
	fi
	if [ ${#files[@]} -gt 0 ]; then
		unpack_packages "${files[@]}"
		epoch=${SOURCE_DATE_EPOCH:-$(newest_time)}
		shadow_day=$((epoch / 86400))
	fi
	if [ -z "$base" ]; then
		for directory in bin lib lib64 sbin; do
			# In an image without packages there is nothing.
			if rmdir "$root/usr/$directory" 2>/dev/null; then continue; fi
			ln -s "usr/$directory" "$root/$directory"
		done
		rmdir "$root/usr" 2>/dev/null || true
	fi
	make_root "$root"
	[ "$bare" ] || [ ${#files[@]} -eq 0 ] || cache_libraries
}

# The digests of an image's layers, lowest first.
manifest_layers() {
	python3 - "$1" <<-'PYTHON'
		import json, sys
		blob = lambda digest: json.load(open(f"{sys.argv[1]}/blobs/" + digest.replace(":", "/")))
		index = json.load(open(f"{sys.argv[1]}/index.json"))
		for layer in blob(index["manifests"][0]["digest"])["layers"]:
		    print(layer["digest"].split(":")[1])
	PYTHON
}

# build_image OUT: makes OUT from what make_root leaves, or takes it from the cache when the recipe and all that it is made of
# are what they were.
build_image() {
	[ $# -eq 1 ] || fail "usage: images/$name/build OUT.tar"
	local out=$1 key
	mkdir -p "$image_cache"
	# Only its owner may look into it: it has programs with the set-user-ID bit.
	work=$(mktemp -d "$image_cache/.work.XXXXXX")
	# shellcheck disable=SC2064 # the directory of now is meant
	trap "rm -rf '$work'" EXIT
	[ -z "$base" ] || "$images/$base/build" "$work/base.tar"
	[ -z "$base" ] || inputs+=("$work/base.tar")
	find_packages
	key=$({
		echo "${SOURCE_DATE_EPOCH:-}"
		find "$images/recipe.sh" "$images/oci-tar" "$recipe" "${inputs[@]}" "${files[@]}" -type f -print0 | sort -z |
			xargs -0 sha256sum | sed 's/ .*//'
	} | sha256sum | cut -c1-32)
	if [ ! -e "$image_cache/$name-$key.tar" ]; then
		say "building $name"
		root=$work/root owners=$work/owners epoch=${SOURCE_DATE_EPOCH:-0} shadow_day=0
		mkdir "$root"
		: >"$owners"
		fill_root
		"$images/oci-tar" --name "$name" --config "$recipe/config.json" --owners "$owners" --epoch "$epoch" \
			${base:+--base "$work/base.tar"} "$root" "$work/image.tar"
		mv "$work/image.tar" "$image_cache/$name-$key.tar"
	fi
	mkdir -p "$(dirname "$out")"
	cp "$image_cache/$name-$key.tar" "$out.tmp"
	mv "$out.tmp" "$out"
}
